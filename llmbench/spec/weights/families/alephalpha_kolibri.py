"""Weight names of Aleph Alpha's Kolibri."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, CORRECTION, EXPERTS, QK_NORM, SHARED_EXPERTS, TOP

table(
    "kolibri1",
    top=TOP,
    layers=ATTENTION
    + QK_NORM
    + EXPERTS
    + CORRECTION
    + SHARED_EXPERTS
    + """
    ffn.router.correction   moe.router.expert_bias
    mixer_norm.*            input_layernorm.*
    post_mixer_norm.*       post_self_attn_layernorm.*
    post_mixer_norm.*       post_attn_norm.*
    ffn_norm.*              post_attention_layernorm.*
    post_ffn_norm.*         post_mlp_layernorm.*
    post_ffn_norm.*         post_ffn_norm.*
    """,
)
