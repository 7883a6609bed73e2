"""Importer for Recursive's Flint."""

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
from llmbench.spec.huggingface.layer_lists import num_layers, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Attention
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import NoPositions


@family("flint")
def flint(c: Config) -> ModelSpec:
    """Flint has attention sinks, and a shared expert without a gate. Most layers have a sliding window and RoPE.

    The other layers have full attention without position encoding.
    """
    bias, count = c.flag("attention_bias"), num_layers(c)
    window = c.window()
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM, "sinks": True}
    local = windowed_layers(c, lambda index: index >= 2 and index % 4 != 1 and index < count - 1)
    mixers: list[tuple[str, Attention]] = [
        ("local", attention(c, sliding_window=window, **common))
        if windowed
        else ("global", attention(c, positions=NoPositions(), **common))
        for windowed in local
    ]
    shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"))
    ffn = moe(c, router=Router(scores="sigmoid", normalize=c.flag("norm_topk_prob", True)), shared=shared)
    step, listed = c.count("decoder_sparse_step", 1), c.entries("mlp_only_layers")
    only_dense = {0, 1} if listed is None else set(listed)
    sparse = [step > 0 and (index + 1) % step == 0 and index not in only_dense for index in range(count)]
    return decoder(
        c,
        mixture_layers(mixers, sparse, ffn, gated(c, bias=False)),
        norm=norm(c),
        positions=rope(c, head_dim=head_dim_of(c)),
    )
