"""Weight names of Jais 1 and 2 (Inception), and of BTLM (Cerebras), which uses the class of Jais 1."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, PRE_NORMS, TOP, UP_DOWN

table("jais2", top=TOP, layers=ATTENTION + UP_DOWN + PRE_NORMS)
