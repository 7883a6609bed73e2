"""Weight names of T5Gemma (Google)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, in_encoder

_LAYERS = (
    ATTENTION
    + GATED
    + """
    mixer_norm.*                pre_self_attn_layernorm.*
    post_mixer_norm.*           post_self_attn_layernorm.*
    ffn_norm.*                  pre_feedforward_layernorm.*
    post_ffn_norm.*             post_feedforward_layernorm.*
    """
)

table(
    "t5gemma",
    top="""
    embedding.weight            model.decoder.embed_tokens.weight
    final_norm.*                model.decoder.norm.*
    lm_head.*                   lm_head.out_proj.*
    encoder.embedding.weight    model.encoder.embed_tokens.weight
    encoder.final_norm.*        model.encoder.norm.*
    """
    + in_encoder(_LAYERS, "model.encoder.layers.{i}."),
    layers=_LAYERS
    + """
    cross_attention.q_proj.*    cross_attn.q_proj.*
    cross_attention.k_proj.*    cross_attn.k_proj.*
    cross_attention.v_proj.*    cross_attn.v_proj.*
    cross_attention.o_proj.*    cross_attn.o_proj.*
    cross_norm.*                pre_cross_attn_layernorm.*
    post_cross_norm.*           post_cross_attn_layernorm.*
    """,
    at="model.decoder.layers.{i}.",
)
