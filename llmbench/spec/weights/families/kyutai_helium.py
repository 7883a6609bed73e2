"""Weight names of Kyutai's Helium."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, PRE_NORMS, TOP

table("helium", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)
