"""Weight names of models from makers that have only one model type here."""

from __future__ import annotations

from llmbench.model.weights.families import table
from llmbench.model.weights.families.common import (
    ATTENTION,
    CORRECTION,
    EXPERTS,
    GATED,
    PRE_NORMS,
    QK_NORM,
    SHARED_EXPERT,
    SHARED_EXPERTS,
    TOP,
)

table("seed_oss", "helium", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)

table("iquestcoder", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)


table(
    "nanochat",
    top=TOP,
    layers="""
    attention.q_proj.*      self_attn.q_proj.*              swap.halves
    attention.k_proj.*      self_attn.k_proj.*              swap.halves
    attention.v_proj.*      self_attn.v_proj.*
    attention.o_proj.*      self_attn.o_proj.*
    ffn.up_proj.*           mlp.fc1.*
    ffn.down_proj.*         mlp.fc2.*
    """,
)

table(
    "hyperclovax",
    top=TOP,
    layers=ATTENTION
    + GATED
    + PRE_NORMS
    + """
    post_mixer_norm.*       post_norm1.*
    post_ffn_norm.*         post_norm2.*
    """,
)

table("mellum", top=TOP, layers=ATTENTION + QK_NORM + EXPERTS + GATED + PRE_NORMS, partial_rotation=True)

table(
    "solar_open",
    top=TOP,
    layers=ATTENTION + QK_NORM + EXPERTS + CORRECTION + SHARED_EXPERTS + GATED + PRE_NORMS,
    partial_rotation=True,
)

table(
    "aria_text",
    top=TOP,
    layers=ATTENTION
    + SHARED_EXPERTS
    + PRE_NORMS
    + """
    ffn.router.*            mlp.router.*
    ffn.experts.gate_proj   mlp.experts.gate_up_proj            t first.half.experts
    ffn.experts.up_proj     mlp.experts.gate_up_proj            t second.half.experts
    ffn.experts.down_proj   mlp.experts.down_proj               t
    ffn.experts.gate_proj   mlp.experts.fc1.weight              t first.half.experts
    ffn.experts.up_proj     mlp.experts.fc1.weight              t second.half.experts
    ffn.experts.down_proj   mlp.experts.fc2.weight              t
    """,
)

table(
    "flint",
    top=TOP,
    layers=ATTENTION
    + QK_NORM
    + EXPERTS
    + SHARED_EXPERT
    + GATED
    + PRE_NORMS
    + """
    attention.sinks         self_attn.sinks
    attention.sinks         self_attn.softmax_offset
    """,
)

table(
    "kolibri1",
    top=TOP,
    layers=ATTENTION
    + QK_NORM
    + EXPERTS
    + CORRECTION
    + SHARED_EXPERTS
    + """
    ffn.router.correction   moe.router.expert_bias
    mixer_norm.*            input_layernorm.*
    post_mixer_norm.*       post_self_attn_layernorm.*
    post_mixer_norm.*       post_attn_norm.*
    ffn_norm.*              post_attention_layernorm.*
    post_ffn_norm.*         post_mlp_layernorm.*
    post_ffn_norm.*         post_ffn_norm.*
    """,
)

table(
    "laguna",
    top=TOP,
    layers="""
    attention.q_proj.weight self_attn.q_proj.weight+self_attn.g_proj.weight         head.by.head
    """
    + ATTENTION
    + QK_NORM
    + EXPERTS
    + CORRECTION
    + SHARED_EXPERTS
    + SHARED_EXPERT
    + GATED
    + PRE_NORMS
    + """
    attention.g_proj.weight self_attn.g_proj.weight
    ffn.router.correction   mlp.experts.e_score_correction_bias
    """,
    partial_rotation=True,
)
