"""Weight names of Jamba (AI21 Labs)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, EXPERTS
from llmbench.spec.weights.families.mamba import HYBRID_GATED, HYBRID_PRE_NORMS, HYBRID_TOP, MAMBA_BESIDE_ATTENTION

table(
    "jamba",
    top=HYBRID_TOP,
    layers=MAMBA_BESIDE_ATTENTION
    + ATTENTION
    + HYBRID_GATED
    + HYBRID_PRE_NORMS
    + """
    mamba.dt_norm.*         mamba.dt_layernorm.*
    mamba.b_norm.*          mamba.b_layernorm.*
    mamba.c_norm.*          mamba.c_layernorm.*
    ffn.router.weight       feed_forward.router.weight
    """
    + EXPERTS.replace(" mlp.", " feed_forward."),
)
