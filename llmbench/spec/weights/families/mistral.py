"""Weight names of Mistral, Ministral and Mixtral (Mistral AI)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, MIXTRAL_EXPERTS, PRE_NORMS, QK_NORM, TOP

table("mistral", "ministral", "ministral3", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)

table("mixtral", top=TOP, layers=ATTENTION + QK_NORM + MIXTRAL_EXPERTS + PRE_NORMS)
