"""Weight names of Qwen 2 to 3.5 (Alibaba): dense models, and models with experts or delta nets."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, EXPERTS, GATED, PRE_NORMS, QK_NORM, SHARED_EXPERT, TOP

table(
    "qwen3_next",
    "qwen3_5_text",
    "qwen3_5_moe_text",
    top=TOP,
    layers=ATTENTION
    + QK_NORM
    + EXPERTS
    + SHARED_EXPERT
    + GATED
    + PRE_NORMS
    + """
    delta_net.q_proj.weight     linear_attn.in_proj_qkvz.weight     delta.q
    delta_net.k_proj.weight     linear_attn.in_proj_qkvz.weight     delta.k
    delta_net.v_proj.weight     linear_attn.in_proj_qkvz.weight     delta.v
    delta_net.g_proj.weight     linear_attn.in_proj_qkvz.weight     delta.g
    delta_net.b_proj.weight     linear_attn.in_proj_ba.weight       delta.b
    delta_net.a_proj.weight     linear_attn.in_proj_ba.weight       delta.a
    delta_net.q_proj.weight     linear_attn.in_proj_qkv.weight      delta.plain.q
    delta_net.k_proj.weight     linear_attn.in_proj_qkv.weight      delta.plain.k
    delta_net.v_proj.weight     linear_attn.in_proj_qkv.weight      delta.plain.v
    delta_net.g_proj.weight     linear_attn.in_proj_z.weight
    delta_net.b_proj.weight     linear_attn.in_proj_b.weight
    delta_net.a_proj.weight     linear_attn.in_proj_a.weight
    delta_net.conv.*            linear_attn.conv1d.*
    delta_net.A_log             linear_attn.A_log
    delta_net.dt_bias           linear_attn.dt_bias
    delta_net.norm.*            linear_attn.norm.*
    delta_net.out_proj.*        linear_attn.out_proj.*
    """,
    ignored=r"mtp\..*",
    partial_rotation=True,
)

table("qwen2", "qwen2_vl_text", "qwen2_5_vl_text", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)

table("qwen3", "qwen3_vl_text", top=TOP, layers=ATTENTION + QK_NORM + GATED + PRE_NORMS)

table("qwen2_moe", top=TOP, layers=ATTENTION + EXPERTS + SHARED_EXPERT + GATED + PRE_NORMS)

table("qwen3_moe", "qwen3_vl_moe_text", top=TOP, layers=ATTENTION + QK_NORM + EXPERTS + GATED + PRE_NORMS)
