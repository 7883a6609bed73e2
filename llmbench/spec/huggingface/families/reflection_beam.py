"""Importer for Reflection's Beam."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    attention,
    decoder,
    deepseek_router,
    gated,
    head_dim_of,
    mixture_layers,
    moe,
    norm,
    vector,
)
from llmbench.spec.huggingface.layer_lists import num_layers, sparse_layers, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import NoPositions


@family("beam")
def beam(c: Config) -> ModelSpec:
    """Beam has attention with an output gate and a gate bias per head. It has four norms per layer.

    Every sixth layer has full attention without position encoding. The other layers have RoPE and a sliding window.
    """
    bias = c.flag("attention_bias")
    if bias:
        c.doubt(
            "attention_bias = True: llmbench counts an output-gate bias per channel, but the model has one per head"
        )
    window, count = c.window(), num_layers(c)
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM, "output_gate": "elementwise"}
    mixers = [
        ("local", attention(c, sliding_window=window, **common))
        if windowed
        else ("global", attention(c, positions=NoPositions(), **common))
        for windowed in windowed_layers(c, lambda index: (index + 1) % 6 != 0 and index < count - 1)
    ]
    ffn = moe(c, router=deepseek_router(c))
    gate_bias = vector("attention.gate_bias", "attention", c.size("num_attention_heads"))
    sparse = sparse_layers(c, lambda index: index >= 3)
    layers = mixture_layers(mixers, sparse, ffn, gated(c, bias=False), "sandwich", extra=(gate_bias,))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))
