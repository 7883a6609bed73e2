"""Weight names of Hunyuan (HY) and Youtu (Tencent)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, EXPERTS, GATED, PRE_NORMS, QK_NORM, TOP
from llmbench.spec.weights.families.deepseek import LATENT

table("youtu", top=TOP, layers=LATENT + GATED + PRE_NORMS)

table(
    "hunyuan_v1_dense",
    top=TOP,
    layers=ATTENTION
    + GATED
    + PRE_NORMS
    + """
    attention.q_norm.*      self_attn.query_layernorm.*
    attention.k_norm.*      self_attn.key_layernorm.*
    """,
)

table(
    "hunyuan_v1_moe",
    top=TOP,
    layers=ATTENTION
    + EXPERTS
    + PRE_NORMS
    + """
    attention.q_norm.*      self_attn.query_layernorm.*
    attention.k_norm.*      self_attn.key_layernorm.*
    ffn.router.weight       mlp.gate.wg.weight
    ffn.shared.gate_proj.*  mlp.shared_mlp.gate_proj.*
    ffn.shared.up_proj.*    mlp.shared_mlp.up_proj.*
    ffn.shared.down_proj.*  mlp.shared_mlp.down_proj.*
    """,
)

table(
    "hy_v3",
    top=TOP,
    layers=ATTENTION
    + QK_NORM
    + EXPERTS
    + GATED
    + PRE_NORMS
    + """
    ffn.router.weight       mlp.router.gate.weight
    ffn.router.correction   mlp.expert_bias
    ffn.shared.gate_proj.*  mlp.shared_mlp.gate_proj.*
    ffn.shared.up_proj.*    mlp.shared_mlp.up_proj.*
    ffn.shared.down_proj.*  mlp.shared_mlp.down_proj.*
    """,
)
