"""Vision towers of CLIP and SigLIP, and of the models that copied SigLIP (Idefics, SmolVLM, Phi-4)."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import tower
from llmbench.spec.huggingface.towers.formulas import (
    grid,
    layer_norm,
    linear,
    patches,
    pooling_head,
    sides,
    transformer_layer,
)


def layers(c: Config) -> int:
    """Return the parameters of all layers."""
    return c.size("num_hidden_layers") * transformer_layer(c.size("hidden_size"), c.size("intermediate_size"))


@tower("clip_vision_model")
def clip(c: Config) -> int:
    """CLIP has a class token, a norm before the layers and a norm after them."""
    width = c.size("hidden_size")
    return patches(c, bias=False) + width + (grid(c) + 1) * width + layers(c) + 2 * layer_norm(width)


@tower("siglip_vision_model")
def siglip(c: Config) -> int:
    """SigLIP has no class token. A head with attention can follow the last norm."""
    head = pooling_head(c.size("hidden_size"), c.size("intermediate_size")) if c.flag("vision_use_head", True) else 0
    return siglip_without_head(c) + head


@tower("idefics2_vision", "idefics3_vision", "smolvlm_vision")
def siglip_without_head(c: Config) -> int:
    """The towers of Idefics2, Idefics3 and SmolVLM are SigLIP without its head."""
    width = c.size("hidden_size")
    return patches(c) + grid(c) * width + layers(c) + layer_norm(width)


@tower("siglip2_vision_model")
def siglip2(c: Config) -> int:
    """SigLIP 2 (NaFlex) has a table of num_patches positions, which it resizes to each image."""
    width = c.size("hidden_size")
    height, across = sides(c, "patch_size")
    head = pooling_head(width, c.size("intermediate_size")) if c.flag("vision_use_head", True) else 0
    embedding = linear(c.size("num_channels") * height * across, width) + c.size("num_patches") * width
    c.ignore("image_size")
    return embedding + layers(c) + layer_norm(width) + head
