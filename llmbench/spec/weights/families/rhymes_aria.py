"""Weight names of Rhymes AI's Aria."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, PRE_NORMS, SHARED_EXPERTS, TOP

table(
    "aria_text",
    top=TOP,
    layers=ATTENTION
    + SHARED_EXPERTS
    + PRE_NORMS
    + """
    ffn.router.*            mlp.router.*
    ffn.experts.gate_proj   mlp.experts.gate_up_proj            t first.half.experts
    ffn.experts.up_proj     mlp.experts.gate_up_proj            t second.half.experts
    ffn.experts.down_proj   mlp.experts.down_proj               t
    ffn.experts.gate_proj   mlp.experts.fc1.weight              t first.half.experts
    ffn.experts.up_proj     mlp.experts.fc1.weight              t second.half.experts
    ffn.experts.down_proj   mlp.experts.fc2.weight              t
    """,
)
