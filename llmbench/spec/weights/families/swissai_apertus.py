"""Weight names of Apertus (Swiss AI Initiative)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, QK_NORM, TOP, UP_DOWN

table(
    "apertus",
    top=TOP,
    layers=ATTENTION
    + QK_NORM
    + UP_DOWN
    + """
    ffn.act.weight          mlp.act_fn.alpha_p+mlp.act_fn.alpha_n
    ffn.act.constants       mlp.act_fn.beta+mlp.act_fn.eps
    mixer_norm.*            attention_layernorm.*
    ffn_norm.*              feedforward_layernorm.*
    """,
)
