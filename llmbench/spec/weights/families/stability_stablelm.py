"""Weight names of StableLM (Stability AI)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import (
    ATTENTION,
    GATED,
    PARALLEL_NORM,
    PRE_NORMS,
    TOP,
)

table(
    "stablelm",
    top=TOP,
    layers=ATTENTION
    + GATED
    + PRE_NORMS
    + PARALLEL_NORM
    + """
    attention.q_norm.weight self_attn.q_layernorm.norms.{e}.weight
    attention.k_norm.weight self_attn.k_layernorm.norms.{e}.weight
    """,
    partial_rotation=True,
)
