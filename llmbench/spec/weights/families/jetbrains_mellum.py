"""Weight names of JetBrains' Mellum."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, EXPERTS, GATED, PRE_NORMS, QK_NORM, TOP

table("mellum", top=TOP, layers=ATTENTION + QK_NORM + EXPERTS + GATED + PRE_NORMS, partial_rotation=True)
