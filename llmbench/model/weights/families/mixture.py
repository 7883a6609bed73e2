"""Mixtures of experts: their experts one by one, or as transformers 5 holds them, stacked and fused."""

from __future__ import annotations

from llmbench.model.weights.families import table
from llmbench.model.weights.families.llama import (
    ATTENTION,
    GATED,
    OUTPUT_NORMS,
    PARALLEL_NORM,
    PRE_NORMS,
    QK_NORM,
    TOP,
)

EXPERTS = """
ffn.experts.gate_proj       mlp.experts.{e}.gate_proj.weight
ffn.experts.up_proj         mlp.experts.{e}.up_proj.weight
ffn.experts.down_proj       mlp.experts.{e}.down_proj.weight
ffn.experts.gate_proj       mlp.experts.gate_up_proj                    first.half.experts
ffn.experts.up_proj         mlp.experts.gate_up_proj                    second.half.experts
ffn.experts.down_proj       mlp.experts.down_proj
ffn.router.weight           mlp.gate.weight
"""

MIXTRAL_EXPERTS = """
ffn.experts.gate_proj       block_sparse_moe.experts.{e}.w1.weight
ffn.experts.up_proj         block_sparse_moe.experts.{e}.w3.weight
ffn.experts.down_proj       block_sparse_moe.experts.{e}.w2.weight
ffn.experts.gate_proj       mlp.experts.gate_up_proj                    first.half.experts
ffn.experts.up_proj         mlp.experts.gate_up_proj                    second.half.experts
ffn.experts.down_proj       mlp.experts.down_proj
ffn.router.weight           block_sparse_moe.gate.weight
ffn.router.weight           mlp.gate.weight
ffn.router.correction       block_sparse_moe.e_score_correction_bias
ffn.router.correction       mlp.e_score_correction_bias
"""

SHARED_EXPERT = """
ffn.shared.gate_proj.*      mlp.shared_expert.gate_proj.*
ffn.shared.up_proj.*        mlp.shared_expert.up_proj.*
ffn.shared.down_proj.*      mlp.shared_expert.down_proj.*
ffn.shared_gate.weight      mlp.shared_expert_gate.weight
"""

SHARED_EXPERTS = """
ffn.shared.gate_proj.*      mlp.shared_experts.gate_proj.*
ffn.shared.up_proj.*        mlp.shared_experts.up_proj.*
ffn.shared.down_proj.*      mlp.shared_experts.down_proj.*
"""

CORRECTION = """
ffn.router.correction       mlp.gate.e_score_correction_bias
ffn.router.correction       mlp.e_score_correction_bias
"""

table("mixtral", "phimoe", "minimax_m2", top=TOP, layers=ATTENTION + QK_NORM + MIXTRAL_EXPERTS + PRE_NORMS)
table("qwen2_moe", top=TOP, layers=ATTENTION + EXPERTS + SHARED_EXPERT + GATED + PRE_NORMS)
table("qwen3_moe", "olmoe", "mellum", top=TOP, layers=ATTENTION + QK_NORM + EXPERTS + GATED + PRE_NORMS)
table("flex_olmo", top=TOP, layers=ATTENTION + QK_NORM + EXPERTS + OUTPUT_NORMS)
table(
    "glm4_moe",
    "solar_open",
    "dots1",
    "exaone_moe",
    top=TOP,
    layers=ATTENTION + QK_NORM + EXPERTS + CORRECTION + SHARED_EXPERTS + GATED + PRE_NORMS,
)
table(
    "ernie4_5_moe",
    top=TOP,
    layers=ATTENTION
    + EXPERTS
    + SHARED_EXPERTS
    + GATED
    + PRE_NORMS
    + """
    ffn.router.correction   mlp.moe_statics.e_score_correction_bias     flat
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
    "gpt_oss",
    top=TOP,
    layers=ATTENTION
    + PRE_NORMS
    + """
    attention.sinks         self_attn.sinks
    ffn.router.*            mlp.router.*
    ffn.experts.gate_proj   mlp.experts.gate_up_proj            t first.turns.experts
    ffn.experts.up_proj     mlp.experts.gate_up_proj            t second.turns.experts
    ffn.experts.down_proj   mlp.experts.down_proj               t
    ffn.experts.gate_bias   mlp.experts.gate_up_proj_bias       first.turns.experts
    ffn.experts.up_bias     mlp.experts.gate_up_proj_bias       second.turns.experts
    ffn.experts.down_bias   mlp.experts.down_proj_bias
    """,
)
table(
    "llama4_text",
    top=TOP,
    layers=ATTENTION
    + PRE_NORMS
    + """
    ffn.router.weight       feed_forward.router.weight
    ffn.experts.gate_proj   feed_forward.experts.gate_up_proj   t first.half.experts
    ffn.experts.up_proj     feed_forward.experts.gate_up_proj   t second.half.experts
    ffn.experts.down_proj   feed_forward.experts.down_proj      t
    ffn.shared.gate_proj.*  feed_forward.shared_expert.gate_proj.*
    ffn.shared.up_proj.*    feed_forward.shared_expert.up_proj.*
    ffn.shared.down_proj.*  feed_forward.shared_expert.down_proj.*
    ffn.gate_proj.*         feed_forward.gate_proj.*
    ffn.up_proj.*           feed_forward.up_proj.*
    ffn.down_proj.*         feed_forward.down_proj.*
    """,
)
table(
    "granitemoe",
    "granitemoeshared",
    "granitemoe_swa",
    top=TOP,
    layers=ATTENTION
    + PRE_NORMS
    + """
    attention.sinks         self_attn.sinks
    ffn.router.weight       block_sparse_moe.router.layer.weight
    ffn.experts.gate_proj   block_sparse_moe.input_linear.weight    first.half.experts
    ffn.experts.up_proj     block_sparse_moe.input_linear.weight    second.half.experts
    ffn.experts.down_proj   block_sparse_moe.output_linear.weight
    ffn.router.weight       block_sparse_moe.router.weight
    ffn.experts.gate_proj   block_sparse_moe.experts.gate_up_proj   first.half.experts
    ffn.experts.up_proj     block_sparse_moe.experts.gate_up_proj   second.half.experts
    ffn.experts.down_proj   block_sparse_moe.experts.down_proj
    ffn.shared.gate_proj.*  shared_mlp.input_linear.*               first.half
    ffn.shared.up_proj.*    shared_mlp.input_linear.*               second.half
    ffn.shared.down_proj.*  shared_mlp.output_linear.*
    """,
)
table(
    "dbrx",
    top="""
    embedding.weight        transformer.wte.weight
    final_norm.*            transformer.norm_f.*
    lm_head.*               lm_head.*
    """,
    layers="""
    mixer_norm.*            norm_attn_norm.norm_1.*
    ffn_norm.*              norm_attn_norm.norm_2.*
    attention.q_proj.*      norm_attn_norm.attn.Wqkv.*              plain.q
    attention.k_proj.*      norm_attn_norm.attn.Wqkv.*              plain.k
    attention.v_proj.*      norm_attn_norm.attn.Wqkv.*              plain.v
    attention.o_proj.*      norm_attn_norm.attn.out_proj.*
    ffn.router.weight       ffn.router.layer.weight
    ffn.experts.gate_proj   ffn.experts.mlp.w1                      by_expert
    ffn.experts.up_proj     ffn.experts.mlp.v1                      by_expert
    ffn.experts.down_proj   ffn.experts.mlp.w2                      by_expert t
    """,
    at="transformer.blocks.{i}.",
)
table("cohere2_moe", top=TOP, layers=ATTENTION + QK_NORM + EXPERTS + SHARED_EXPERTS + GATED + PARALLEL_NORM)
table(
    "afmoe",
    top=TOP,
    layers="""
    attention.q_proj.weight self_attn.q_proj.weight+self_attn.gate_proj.weight      head.by.head
    """
    + ATTENTION
    + QK_NORM
    + EXPERTS
    + SHARED_EXPERTS
    + GATED
    + """
    mixer_norm.*            input_layernorm.*
    post_mixer_norm.*       post_attention_layernorm.*
    ffn_norm.*              pre_mlp_layernorm.*
    post_ffn_norm.*         post_mlp_layernorm.*
    ffn.router.weight       mlp.router.gate.weight
    ffn.router.correction   mlp.expert_bias
    """,
)
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
table(
    "flint",
    top=TOP,
    layers=ATTENTION
    + QK_NORM
    + EXPERTS
    + SHARED_EXPERT
    + GATED
    + PRE_NORMS
    + """
    attention.sinks         self_attn.sinks
    attention.sinks         self_attn.softmax_offset
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
table(
    "mimo_v2_flash",
    top=TOP,
    layers=ATTENTION
    + EXPERTS
    + CORRECTION
    + GATED
    + PRE_NORMS
    + """
    attention.sinks         self_attn.sinks
    attention.sinks         self_attn.attention_sink_bias
    """,
    ignored=r"model\.mtp\..*",
)
table(
    "laguna",
    top=TOP,
    layers="""
    attention.q_proj.weight self_attn.q_proj.weight+self_attn.g_proj.weight         head.by.head
    """
    + ATTENTION
    + QK_NORM
    + EXPERTS
    + CORRECTION
    + SHARED_EXPERTS
    + SHARED_EXPERT
    + GATED
    + PRE_NORMS
    + """
    attention.g_proj.weight self_attn.g_proj.weight
    ffn.router.correction   mlp.experts.e_score_correction_bias
    """,
)
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
    ffn.gate_proj.*         mlp.gate_up_proj.*                      first.half
    ffn.up_proj.*           mlp.gate_up_proj.*                      second.half
    ffn.down_proj.*         mlp.down_proj.*
    """,
)
