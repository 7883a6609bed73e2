"""Weight names of Naver's HyperCLOVA X."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, PRE_NORMS, TOP

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
