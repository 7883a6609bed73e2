"""Weight names of AFM and Trinity (Arcee)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import (
    ATTENTION,
    EXPERTS,
    GATED,
    PRE_NORMS,
    QK_NORM,
    SHARED_EXPERTS,
    TOP,
    UP_DOWN,
)

table("arcee", top=TOP, layers=ATTENTION + UP_DOWN + PRE_NORMS)

table(
    "afmoe",
    top=TOP,
    layers="""
    attention.q_proj.weight self_attn.q_proj.weight+self_attn.gate_proj.weight      head.by.head
    """
    + ATTENTION
    + QK_NORM
    + EXPERTS
    + SHARED_EXPERTS
    + GATED
    + """
    mixer_norm.*            input_layernorm.*
    post_mixer_norm.*       post_attention_layernorm.*
    ffn_norm.*              pre_mlp_layernorm.*
    post_ffn_norm.*         post_mlp_layernorm.*
    ffn.router.weight       mlp.router.gate.weight
    ffn.router.correction   mlp.expert_bias
    """,
)
