"""Importers for AFM and Trinity by Arcee AI."""

from __future__ import annotations

from llmbench.spec.ffn import Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    attention,
    block,
    decoder,
    dense,
    gated,
    head_dim_of,
    mixture_layers,
    moe,
    norm,
    shared_experts,
)
from llmbench.spec.huggingface.layer_lists import num_layers, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import Embedding, ModelSpec
from llmbench.spec.position import NoPositions


@family("arcee")
def arcee(c: Config, *, norm_kind: str = "rmsnorm") -> ModelSpec:
    """AFM has Llama's architecture, but feed-forwards of two matrices with squared ReLU."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    ffn = dense(c, bias=c.flag("mlp_bias"), default="relu2")
    return decoder(c, block(mixer, ffn), norm=norm(c, norm_kind), positions=rope(c, head_dim=mixer.head_dim))


@family("afmoe")
def afmoe(c: Config) -> ModelSpec:
    """Trinity has attention with an output gate, and four norms per layer.

    Every fourth layer has full attention without position encoding. The other layers have RoPE and a sliding window.
    """
    bias = c.flag("attention_bias")
    if bias:
        c.doubt("attention_bias = True: llmbench counts a bias of the output gate, but the model has no such bias")
    every, window = c.size("global_attn_every_n_layers", 4), c.window()
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM, "output_gate": "elementwise"}
    mixers = [
        ("local", attention(c, sliding_window=window, **common))
        if windowed
        else ("global", attention(c, positions=NoPositions(), **common))
        for windowed in windowed_layers(c, lambda index: (index + 1) % every != 0)
    ]
    width = c.size("moe_intermediate_size")
    router = Router(scores="sigmoid", correction="parameter", normalize=True, scale=c.number("route_scale", 1.0))
    ffn = moe(c, router=router, shared=shared_experts(c, "num_shared_experts", width))
    c.ignore(
        """
        route_norm score_func n_group topk_group num_expert_groups num_limited_groups
        use_grouped_mm
        """,
    )
    first = c.count("num_dense_layers")
    layers = mixture_layers(mixers, [i >= first for i in range(num_layers(c))], ffn, gated(c, bias=False), "sandwich")
    scale = c.size("hidden_size") ** 0.5 if c.flag("mup_enabled") else 1.0
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim_of(c)),
        embedding=Embedding(scale=scale),
    )
