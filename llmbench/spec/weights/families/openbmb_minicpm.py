"""Weight names of MiniCPM 1 to 3 (OpenBMB)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import GATED, PRE_NORMS, TOP
from llmbench.spec.weights.families.deepseek import LATENT

table("minicpm3", top=TOP, layers=LATENT + GATED + PRE_NORMS)
