"""Shared formulas: the numbers of parameters of the modules of which towers and projectors consist.

A tower is a stack of bidirectional layers with an embedding of patches or of sound before it. All functions return
numbers of elements.
"""

from __future__ import annotations

import math

from llmbench.spec.huggingface.config import Config


def linear(inputs: int, outputs: int, *, bias: bool = True) -> int:
    """A linear layer."""
    return inputs * outputs + (outputs if bias else 0)


def conv(inputs: int, outputs: int, *kernel: int, bias: bool = True, groups: int = 1) -> int:
    """A convolution. kernel: its size in each dimension. groups: groups of channels that do not meet."""
    return inputs // groups * outputs * math.prod(kernel) + (outputs if bias else 0)


def layer_norm(width: int) -> int:
    """A LayerNorm with factors and biases. An RMSNorm has `width` elements."""
    return 2 * width


def attention(
    width: int, *, inner: int | None = None, kv: int | None = None, qkv_bias: bool = True, output_bias: bool = True
) -> int:
    """The projections of an attention. inner: width of all query heads. kv: width of all key heads, and of all value
    heads. None: the same as `width` and as `inner`."""
    queries = inner or width
    keys = kv or queries
    return (
        linear(width, queries, bias=qkv_bias)
        + 2 * linear(width, keys, bias=qkv_bias)
        + linear(queries, width, bias=output_bias)
    )


def mlp(width: int, inner: int, outputs: int | None = None, *, bias: bool = True) -> int:
    """Two linear layers. outputs: width after the second one. None: `width`."""
    return linear(width, inner, bias=bias) + linear(inner, outputs or width, bias=bias)


def gated_mlp(width: int, inner: int, outputs: int | None = None, *, bias: bool = False) -> int:
    """Three linear layers: the product of two of them goes into the third. outputs: see `mlp`."""
    return 2 * linear(width, inner, bias=bias) + linear(inner, outputs or width, bias=bias)


def transformer_layer(width: int, inner: int) -> int:
    """A layer with two LayerNorms, attention and a feed-forward of two matrices, all with biases (ViT)."""
    return 2 * layer_norm(width) + attention(width) + mlp(width, inner)


def pooling_head(width: int, inner: int) -> int:
    """SigLIP's head: one trained query attends to all patches, then a norm and a feed-forward follow."""
    return width + attention(width) + layer_norm(width) + mlp(width, inner)


def sides(c: Config, key: str) -> tuple[int, int]:
    """Return height and width: `key` has one number, or a list of two."""
    value = c.get(key)
    if not isinstance(value, list):
        side = c.size(key)
        return side, side
    entries = c.entries(key, 2) or []
    listed = c.nested(key, {str(place): entry for place, entry in enumerate(entries)})
    return listed.size("0"), listed.size("1")


def two(c: Config, key: str) -> tuple[Config, Config]:
    """Return the two entries of the list `key`. Each Config has its entry under the key `entry`."""
    entries = c.entries(key, 2, nested=True)
    if entries is None:
        raise c.error(key, "is missing")
    first, second = (c.nested(f"{key}.{place}", {"entry": entry}) for place, entry in enumerate(entries))
    return first, second


def patches(c: Config, *, channels: str = "num_channels", bias: bool = True, frames: str | None = None) -> int:
    """The projection of a patch of the image to hidden_size.

    channels: config key of the channels of the image. frames: config key of the images in one patch of a video.
    """
    depth = 1 if frames is None else c.size(frames)
    return conv(c.size(channels), c.size("hidden_size"), depth, *sides(c, "patch_size"), bias=bias)


def grid(c: Config) -> int:
    """Return the number of patches of an image of the full size."""
    (height, width), (patch_height, patch_width) = sides(c, "image_size"), sides(c, "patch_size")
    return (height // patch_height) * (width // patch_width)
