"""Weight names of MiniMax-Text-01, M1, M2 and M3 (MiniMax)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, CORRECTION, MIXTRAL_EXPERTS, PRE_NORMS, QK_NORM, TOP

table(
    "minimax",
    top=TOP,
    layers=ATTENTION
    + MIXTRAL_EXPERTS
    + PRE_NORMS
    + """
    linear_attention.qkv_proj.*     self_attn.qkv_proj.*
    linear_attention.g_proj.*       self_attn.output_gate.*
    linear_attention.norm.*         self_attn.norm.*
    linear_attention.out_proj.*     self_attn.out_proj.*
    """,
    ignored=r"model\.layers\.\d+\.self_attn\.(slope_rate|query_decay|key_decay|diagonal_decay)",
)

table("minimax_m2", top=TOP, layers=ATTENTION + QK_NORM + MIXTRAL_EXPERTS + PRE_NORMS, partial_rotation=True)

table(
    "minimax_m3_vl_text",
    top=TOP,
    layers=ATTENTION
    + QK_NORM
    + MIXTRAL_EXPERTS
    + CORRECTION
    + PRE_NORMS
    + """
    ffn.shared.gate_proj.*  mlp.shared_experts.gate_up_proj.*       first.half
    ffn.shared.up_proj.*    mlp.shared_experts.gate_up_proj.*       second.half
    ffn.shared.down_proj.*  mlp.shared_experts.down_proj.*
    ffn.shared.gate_proj.*  block_sparse_moe.shared_experts.gate_proj.*
    ffn.shared.up_proj.*    block_sparse_moe.shared_experts.up_proj.*
    ffn.shared.down_proj.*  block_sparse_moe.shared_experts.down_proj.*
    ffn.gate_proj.*         mlp.gate_up_proj.*                      first.half
    ffn.up_proj.*           mlp.gate_up_proj.*                      second.half
    ffn.down_proj.*         mlp.down_proj.*
    """,
    partial_rotation=True,
)
