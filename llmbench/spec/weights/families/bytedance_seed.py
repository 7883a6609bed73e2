"""Weight names of ByteDance's Seed."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, PRE_NORMS, TOP

table("seed_oss", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)
