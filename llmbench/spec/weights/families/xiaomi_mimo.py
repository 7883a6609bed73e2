"""Weight names of MiMo (Xiaomi)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, CORRECTION, EXPERTS, GATED, PRE_NORMS, TOP

table(
    "mimo_v2_flash",
    top=TOP,
    layers=ATTENTION
    + EXPERTS
    + CORRECTION
    + GATED
    + PRE_NORMS
    + """
    attention.sinks         self_attn.sinks
    attention.sinks         self_attn.attention_sink_bias
    """,
    ignored=r"model\.mtp\..*",
    partial_rotation=True,
)
