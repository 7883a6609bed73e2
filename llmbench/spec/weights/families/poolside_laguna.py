"""Weight names of Poolside's Laguna."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import (
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
