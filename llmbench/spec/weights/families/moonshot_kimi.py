"""Weight names of Kimi K2 and Kimi Linear (Moonshot AI)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import CORRECTION, GATED, MIXTRAL_EXPERTS, PRE_NORMS, SHARED_EXPERTS, TOP
from llmbench.spec.weights.families.deepseek import DEEPSEEK_MOE, LATENT

table("kimi_k2", top=TOP, layers=LATENT + DEEPSEEK_MOE + PRE_NORMS)

table(
    "kimi_linear",
    top=TOP,
    layers=LATENT
    + MIXTRAL_EXPERTS
    + CORRECTION
    + SHARED_EXPERTS
    + SHARED_EXPERTS.replace(" mlp.", " block_sparse_moe.")
    + GATED
    + GATED.replace(" mlp.", " block_sparse_moe.")
    + PRE_NORMS
    + """
    ffn.router.correction       block_sparse_moe.gate.e_score_correction_bias
    delta_net.q_proj.*          self_attn.q_proj.*
    delta_net.k_proj.*          self_attn.k_proj.*
    delta_net.v_proj.*          self_attn.v_proj.*
    delta_net.conv.weight       self_attn.q_conv1d.weight+self_attn.k_conv1d.weight+self_attn.v_conv1d.weight
    delta_net.f_a_proj.*        self_attn.f_a_proj.*
    delta_net.f_b_proj.*        self_attn.f_b_proj.*
    delta_net.g_a_proj.*        self_attn.g_a_proj.*
    delta_net.g_b_proj.*        self_attn.g_b_proj.*
    delta_net.b_proj.*          self_attn.b_proj.*
    delta_net.A_log             self_attn.A_log                     flat
    delta_net.dt_bias           self_attn.dt_bias
    delta_net.norm.*            self_attn.o_norm.*
    delta_net.out_proj.*        self_attn.o_proj.*
    """,
)
