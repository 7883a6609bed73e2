"""Importer for Aleph Alpha's Kolibri."""

from __future__ import annotations

from llmbench.spec.ffn import Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    attention,
    decoder,
    head_dim_of,
    mixture_layers,
    moe,
    norm,
)
from llmbench.spec.huggingface.layer_lists import num_layers, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import NoPositions


@family("kolibri1")
def kolibri(c: Config) -> ModelSpec:
    """Kolibri 1 has experts in all layers, and four norms per layer.

    In models with windows, every fifth layer has full attention without position encoding. The other layers have RoPE
    and a sliding window.
    """
    window = c.window()
    local = windowed_layers(c, lambda index: (index + 1) % 5 != 0)
    mixers = [
        ("local", attention(c, qk_norm=HEAD_NORM, sliding_window=window))
        if windowed
        else ("global", attention(c, qk_norm=HEAD_NORM, positions=NoPositions() if window else None))
        for windowed in local
    ]
    shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"))
    router = Router(scores="sigmoid_topk", correction="buffer", normalize=c.flag("norm_topk_prob"))
    layers = mixture_layers(mixers, [True] * num_layers(c), moe(c, router=router, shared=shared), None, "sandwich")
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))
