"""Weight names of Command-R and its successors (Cohere)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import (
    ATTENTION,
    EXPERTS,
    GATED,
    PARALLEL_NORM,
    QK_NORM,
    SHARED_EXPERTS,
    TOP,
)

table("cohere", "cohere2", "cohere_compass_text", top=TOP, layers=ATTENTION + QK_NORM + GATED + PARALLEL_NORM)

table("cohere2_moe", top=TOP, layers=ATTENTION + QK_NORM + EXPERTS + SHARED_EXPERTS + GATED + PARALLEL_NORM)
