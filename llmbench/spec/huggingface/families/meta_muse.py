"""Importers for the language models of Muse Glimmer and Muse Spark by Meta."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from llmbench.spec.ffn import MoE
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import SIGMOID, attention, block, decoder, gated, moe, norm, vector
from llmbench.spec.huggingface.layer_lists import layer_types, num_layers, sparse_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Attention, QKNorm
from llmbench.spec.model import Head, Layer, ModelSpec
from llmbench.spec.position import NoPositions, Rope


@family("muse_glimmer_text")
def muse_glimmer(c: Config) -> ModelSpec:
    """Muse Glimmer has an output gate per channel, a scaled norm on q and k, and norms before and after sublayers.

    Every fourth layer, counted from the last, has full attention without positions. The others have a sliding window.
    """
    ffn = gated(c, bias=False)
    layers = [(name, block(mixer, ffn, "sandwich")) for name, mixer in _mixers(c)]
    return _model(c, layers)


@family("muse_spark_text")
def muse_spark(c: Config) -> ModelSpec:
    """Muse Spark is Muse Glimmer with experts in a narrower space and a gate on each residual sum.

    The norms on the outputs of the attention's heads and of the mixer have no weights.
    """
    hidden, narrow = c.size("hidden_size"), c.size("moe_hidden_size")
    router = replace(SIGMOID, scale=c.number("routed_scaling_factor", 1.0))
    experts = moe(c, experts="num_local_experts", router=router, latent_size=narrow)
    of_layer = (
        vector("ffn_output_norm", "norms", hidden),
        vector("mixer_residual_gate", "other", hidden),
        vector("ffn_residual_gate", "other", hidden),
    )
    of_experts = (vector("ffn.pre_expert_norm", "norms", narrow), vector("ffn.post_expert_norm", "norms", narrow))
    c.ignore("residual_gate_temperature")
    layers: list[tuple[str, Layer]] = []
    for (name, mixer), sparse in zip(_mixers(c), sparse_layers(c, lambda index: True), strict=True):
        ffn: Any = experts if sparse else gated(c, bias=False)
        extra = of_layer + (of_experts if isinstance(ffn, MoE) else ())
        layers.append((name if sparse else f"{name}_dense", block(mixer, ffn, extra=extra)))
    return _model(c, layers)


def _mixers(c: Config) -> list[tuple[str, Attention]]:
    """Return a pair (name, attention) for each layer."""
    count = num_layers(c)
    c.require("attention_bias", False)
    derived = ["sliding_attention" if (count - 1 - index) % 4 else "full_attention" for index in range(count)]
    kinds = layer_types(c, derived)
    bases = c.entries("layer_rope_theta", count) or [0 if kind == "full_attention" else None for kind in kinds]
    usual, window = _rope(c), c.window()
    scale = c.number("qk_scale_factor", 1.0) * c.size("head_dim") ** -0.5
    mixers = []
    for kind, base in zip(kinds, bases, strict=True):
        own = None if base is None else Rope(theta=float(base)) if base else NoPositions()
        local = kind == "sliding_attention"
        mixer = attention(
            c,
            qk_norm=QKNorm(weight=False),
            output_gate="elementwise",
            scale=scale,
            sliding_window=window if local else None,
            positions=None if own == usual else own,
        )
        mixers.append(("local" if local else "global", mixer))
    return mixers


def _rope(c: Config) -> Rope:
    return rope(c, head_dim=c.size("head_dim"))


def _model(c: Config, layers: list[tuple[str, Layer]]) -> ModelSpec:
    """Return the model with these layers."""
    c.unbuildable("the norm of the embedding, and norms after sublayers with their own epsilon, are unsupported")
    c.ignore("post_norm_eps")
    return decoder(
        c,
        layers,
        norm=norm(c, unit_offset=True),
        positions=_rope(c),
        head=Head(soft_cap=c.optional_number("final_logit_softcapping"), scale=c.number("output_multiplier", 1.0)),
    )
