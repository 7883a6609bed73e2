"""Importer for Poolside's Laguna."""

from __future__ import annotations

from llmbench.spec.ffn import Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    attention,
    decoder,
    gated,
    head_dim_of,
    mixture_layers,
    moe,
    norm,
)
from llmbench.spec.huggingface.layer_lists import layer_size, num_layers, sparse_layers, windowed_layers
from llmbench.spec.huggingface.rotation import expect_stated_rotation, rope
from llmbench.spec.model import ModelSpec


@family("laguna")
def laguna(c: Config) -> ModelSpec:
    """In Laguna, each layer has its own number of query heads. Attention has an output gate with softplus.

    The gate has one value per head, or one value per channel.
    """
    bias, gating = c.flag("attention_bias"), c.get("gating")
    headwise = gating is True or gating == "per-head"
    count = num_layers(c)
    if bias and not headwise:
        c.doubt("attention_bias = True: llmbench counts a bias of the output gate, but the model has no such bias")
    heads = c.entries("num_attention_heads_per_layer", count) or [c.size("num_attention_heads")] * count
    local = windowed_layers(c, lambda index: False)
    window = c.window()
    expect_stated_rotation(c)
    positions, near_positions = (
        rope(c, head_dim=head_dim_of(c), layer_type=kind) for kind in ("full_attention", "sliding_attention")
    )
    mixers = []
    for num_heads, windowed in zip(heads, local, strict=True):
        mixer = attention(
            c,
            num_attention_heads=layer_size(c, "num_attention_heads_per_layer", num_heads),
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=HEAD_NORM,
            output_gate="headwise" if headwise else "elementwise",
            gate_activation="softplus",
            sliding_window=window if windowed else None,
            positions=near_positions if windowed else None,
        )
        mixers.append(("local" if windowed else "global", mixer))
    shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"))
    c.ignore("num_attention_heads", "swa_attention_sink_enabled")
    if c.number("moe_router_logit_softcapping", 0.0) > 0:
        c.unbuildable("moe_router_logit_softcapping: a soft cap on the router's logits is not supported")
    router = Router(
        scores="sigmoid",
        correction="parameter",
        normalize=True,
        scale=c.number("moe_routed_scaling_factor", 1.0),
        on_input=c.flag("moe_apply_router_weight_on_input"),
    )
    ffn = moe(c, router=router, shared=shared)
    sparse = sparse_layers(c, lambda index: index > 0)
    return decoder(c, mixture_layers(mixers, sparse, ffn, gated(c, bias=False)), norm=norm(c), positions=positions)
