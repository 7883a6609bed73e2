"""Weight names of Recursive's Flint."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, EXPERTS, GATED, PRE_NORMS, QK_NORM, SHARED_EXPERT, TOP

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
