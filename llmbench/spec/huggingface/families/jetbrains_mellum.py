"""Importer for JetBrains' Mellum."""

from __future__ import annotations

from llmbench.spec.ffn import Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    attention,
    block,
    decoder,
    gated,
    head_dim_of,
    moe,
    norm,
)
from llmbench.spec.huggingface.layer_lists import layer_types, num_layers
from llmbench.spec.huggingface.rotation import expect_stated_rotation, rope
from llmbench.spec.model import Layer, ModelSpec


@family("mellum")
def mellum(c: Config) -> ModelSpec:
    """Mellum 2 has Qwen3's attention.

    `layer_types` states which layers have a sliding window. `mlp_layer_types` states which layers have experts.
    """
    bias = c.flag("attention_bias")
    window = c.window()
    count = num_layers(c)
    kinds = layer_types(c, ["full_attention"] * count)
    sparse = c.entries("mlp_layer_types", count) or ["sparse"] * count
    experts = moe(c, router=Router(normalize=c.flag("norm_topk_prob")))
    plain = gated(c, bias=False)
    if c.count("num_mtp_layers"):
        c.note("num_mtp_layers: multi-token-prediction modules are not counted")
    c.ignore("mtp_layer_types", "mtp_mlp_layer_types", "intermediate_size")
    expect_stated_rotation(c)
    positions = rope(c, head_dim=head_dim_of(c), layer_type="full_attention")
    layers: list[tuple[str, Layer]] = []
    for kind, feed in zip(kinds, sparse, strict=True):
        span = window if kind == "sliding_attention" else None
        own_positions = rope(c, head_dim=head_dim_of(c), layer_type=str(kind))
        mixer = attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=HEAD_NORM,
            sliding_window=span,
            positions=None if own_positions == positions else own_positions,
        )
        name = ("local" if span else "global") + ("" if feed == "sparse" else "_dense")
        layers.append((name, block(mixer, experts if feed == "sparse" else plain)))
    return decoder(c, layers, norm=norm(c), positions=positions)
