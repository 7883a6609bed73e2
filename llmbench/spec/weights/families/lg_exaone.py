"""Weight names of EXAONE (LG AI Research)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import (
    ATTENTION,
    CORRECTION,
    EXPERTS,
    GATED,
    OUTPUT_NORMS,
    PRE_NORMS,
    QK_NORM,
    SHARED_EXPERTS,
    TOP,
)

table("exaone4", top=TOP, layers=ATTENTION + QK_NORM + GATED + OUTPUT_NORMS)

table("exaone_moe", top=TOP, layers=ATTENTION + QK_NORM + EXPERTS + CORRECTION + SHARED_EXPERTS + GATED + PRE_NORMS)
