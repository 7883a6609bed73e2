"""Importer for SmolLM3 by Hugging Face."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, gated, head_dim_of, norm
from llmbench.spec.huggingface.layer_lists import layer_types, num_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.position import NoPositions


@family("smollm3")
def smollm3(c: Config) -> ModelSpec:
    """In SmolLM3, every fourth layer has no position encoding. No released model has a sliding window."""
    count = num_layers(c)
    every = c.size("no_rope_layer_interval", 4)
    rotated = c.entries("no_rope_layers")
    rotated = rotated if rotated and len(rotated) >= count else [(i + 1) % every != 0 for i in range(count)]
    window = c.window() if c.flag("use_sliding_window") else None
    c.ignore("sliding_window", "max_window_layers")
    kinds = layer_types(
        c, ["sliding_attention" if window and not rotated[i] else "full_attention" for i in range(count)]
    )
    if window is None and "sliding_attention" in kinds:
        c.unbuildable("layer_types contains sliding_attention, but use_sliding_window is false")
    bias = c.flag("attention_bias")
    ffn = gated(c)
    layers: list[tuple[str, Layer]] = []
    for kind, rotates in zip(kinds, rotated, strict=False):
        span = window if kind == "sliding_attention" else None
        positions = None if rotates else NoPositions()
        mixer = attention(c, qkv_bias=bias, output_bias=bias, sliding_window=span, positions=positions)
        layers.append(("block" if rotates else "nope", block(mixer, ffn)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))
