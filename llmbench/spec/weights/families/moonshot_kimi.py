"""Weight names of Kimi K2 and Kimi Linear (Moonshot AI)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import PRE_NORMS, TOP
from llmbench.spec.weights.families.deepseek import DEEPSEEK_MOE, LATENT

table("kimi_k2", top=TOP, layers=LATENT + DEEPSEEK_MOE + PRE_NORMS)
