"""Weight names of InternLM 1 to 3 (Shanghai AI Laboratory)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, PRE_NORMS, TOP

table("internlm3", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)
