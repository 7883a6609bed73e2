"""Weight names of A.X K1 (SK Telecom)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import PRE_NORMS, TOP
from llmbench.spec.weights.families.deepseek import DEEPSEEK_MOE, LATENT

table(
    "axk1",
    top=TOP,
    layers=LATENT
    + DEEPSEEK_MOE
    + PRE_NORMS
    + """
    ffn.output_norm.*       post_mlp_layernorm.*
    ffn.output_norm.*       mlp.post_mlp_layernorm.*
    """,
)
