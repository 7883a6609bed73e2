"""Weight names of the language model in Emu3 (BAAI). They are those of Llama."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, GATED, PRE_NORMS, TOP

table("emu3_text_model", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)
