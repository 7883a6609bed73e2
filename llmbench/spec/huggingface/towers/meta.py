"""Vision towers of Llama 3.2 Vision and Llama 4."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.towers import Whole, composite, tower
from llmbench.spec.huggingface.towers.formulas import (
    attention,
    grid,
    layer_norm,
    linear,
    mlp,
    patches,
    transformer_layer,
)


@tower("mllama_vision_model")
def mllama(c: Config) -> int:
    """Llama 3.2 Vision cuts an image into tiles. A table has positions for each aspect ratio, tile and patch."""
    width, tiles, rows = c.size("hidden_size"), c.size("max_num_tiles"), grid(c) + 1
    ratios = len(c.entries("supported_aspect_ratios", nested=True) or [()] * 8) + 1
    positions = rows * width + ratios * tiles * rows * width + 1
    of_tiles = 2 * (ratios * tiles * width + 1)
    layer = attention(width, qkv_bias=False, output_bias=False) + mlp(width, c.size("intermediate_size"))
    layer += 2 * layer_norm(width)
    layers = c.size("num_hidden_layers") * layer + c.size("num_global_layers") * (layer + 2)
    c.ignore("intermediate_layers_indices", "vision_output_dim", "max_aspect_ratio_id")
    return patches(c, bias=False) + width + positions + of_tiles + layers + 2 * layer_norm(width)


@composite("mllama")
def llama32(w: Whole) -> dict[str, int | None]:
    """The layers of the text part with cross-attention read the projected output."""
    projector = linear(w.size("vision_config", "vision_output_dim"), w.text_width)
    return {"vision_model": w.tower("vision_config"), "multi_modal_projector": projector}


@tower("llama4_vision_model")
def llama4(c: Config) -> int:
    """Llama 4's tower has a class token, and joins patches with an adapter of two matrices."""
    width, inner, outputs = c.size("hidden_size"), c.size("intermediate_size"), c.size("projector_output_dim")
    adapter = inner * c.size("projector_input_dim") + outputs**2
    c.ignore("pixel_shuffle_ratio", "vision_output_dim", "multi_modal_projector_bias")
    layers = c.size("num_hidden_layers") * transformer_layer(width, inner)
    return patches(c, bias=False) + width + (grid(c) + 1) * width + layers + 2 * layer_norm(width) + adapter


@composite("llama4")
def llama4_whole(w: Whole) -> dict[str, int | None]:
    """Llama 4's projector is one matrix."""
    projector = linear(w.size("vision_config", "vision_output_dim"), w.text_width, bias=False)
    return {"vision_model": w.tower("vision_config"), "multi_modal_projector": projector}
