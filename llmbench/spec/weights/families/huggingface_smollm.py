"""Weight names of SmolLM3 (Hugging Face)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, PRE_NORMS, TOP

table("smollm3", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)
