"""Weight names of OLMo 1 to 3, OLMoE, FlexOlmo and OLMo Hybrid (Allen Institute for AI)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, EXPERTS, GATED, OUTPUT_NORMS, PRE_NORMS, QK_NORM, TOP

# In OLMo Hybrid, layers with a delta net have norms before their sublayers. Layers with attention have norms after
# their sublayers.
table(
    "olmo_hybrid",
    top=TOP,
    layers=ATTENTION
    + QK_NORM
    + GATED
    + PRE_NORMS
    + OUTPUT_NORMS
    + """
    mixer_norm.*                attention_layer_norm.*
    post_mixer_norm.*           feedforward_layer_norm.*
    ffn_norm.*                  feedforward_layer_norm.*
    delta_net.q_proj.*          linear_attn.q_proj.*
    delta_net.k_proj.*          linear_attn.k_proj.*
    delta_net.v_proj.*          linear_attn.v_proj.*
    delta_net.g_proj.*          linear_attn.g_proj.*
    delta_net.a_proj.*          linear_attn.a_proj.*
    delta_net.b_proj.*          linear_attn.b_proj.*
    delta_net.conv.*            linear_attn.conv1d.*
    delta_net.conv.weight       linear_attn.q_conv1d.weight+linear_attn.k_conv1d.weight+linear_attn.v_conv1d.weight
    delta_net.A_log             linear_attn.A_log
    delta_net.dt_bias           linear_attn.dt_bias
    delta_net.norm.*            linear_attn.o_norm.*
    delta_net.out_proj.*        linear_attn.o_proj.*
    """,
    ignored=r"mtp\..*",
)

table("olmo", top=TOP, layers=ATTENTION + GATED)

table("olmo2", "olmo3", top=TOP, layers=ATTENTION + QK_NORM + GATED + OUTPUT_NORMS)

table("olmoe", top=TOP, layers=ATTENTION + QK_NORM + EXPERTS + GATED + PRE_NORMS)

table("flex_olmo", top=TOP, layers=ATTENTION + QK_NORM + EXPERTS + OUTPUT_NORMS)
