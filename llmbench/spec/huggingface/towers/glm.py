"""Vision towers of GLM-4.1V, GLM-4.5V, GLM-5 and GLM-OCR. qwen.py has their composites."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import tower
from llmbench.spec.huggingface.towers.formulas import attention, conv, gated_mlp, grid, layer_norm, linear, patches


def _after(c: Config, inner: int) -> int:
    """Return the parameters after the layers: a norm, a convolution that joins patches, and a gated merger."""
    width, text, merge = c.size("hidden_size"), c.size("out_hidden_size"), c.size("spatial_merge_size")
    merger = linear(text, text, bias=False) + layer_norm(text) + gated_mlp(text, inner)
    return width + conv(width, text, merge, merge) + merger


@tower("glm4v_vision", "glm4v_moe_vision")
def glm4v(c: Config) -> int:
    """The feed-forwards of GLM-4.1V's tower have the width of the text part."""
    width = c.size("hidden_size")
    layer = 2 * width + attention(width, qkv_bias=c.flag("attention_bias"), output_bias=False)
    layer += gated_mlp(width, c.size("out_hidden_size"))
    embedding = patches(c, channels="in_channels", frames="temporal_patch_size") + grid(c) * width
    return embedding + width + c.size("depth") * layer + _after(c, c.size("intermediate_size"))


@tower("glm_ocr_vision", "glm5_next_vision")
def glm_ocr(c: Config) -> int:
    """GLM-OCR's and GLM-5's towers have norms on queries and keys, and no table of positions."""
    width, bias = c.size("hidden_size"), c.flag("attention_bias")
    head = width // c.size("num_heads")
    layer = 2 * width + attention(width, qkv_bias=bias, output_bias=bias) + 2 * head
    layer += gated_mlp(width, c.size("intermediate_size"), bias=bias)
    embedding = patches(c, channels="in_channels", frames="temporal_patch_size")
    c.ignore("image_size")
    inner = c.size("projection_intermediate_size", c.size("out_hidden_size") * c.size("in_channels"))
    return embedding + c.size("depth") * layer + _after(c, inner)
