"""Weight names of MPT and DBRX (Databricks, MosaicML)."""

from __future__ import annotations

from llmbench.spec.weights.families import table

table(
    "mpt",
    top="""
    embedding.weight        transformer.wte.weight
    final_norm.*            transformer.norm_f.*
    lm_head.*               lm_head.*
    """,
    layers="""
    attention.q_proj.*      attn.Wqkv.*                     plain.q
    attention.k_proj.*      attn.Wqkv.*                     plain.k
    attention.v_proj.*      attn.Wqkv.*                     plain.v
    attention.o_proj.*      attn.out_proj.*
    ffn.up_proj.*           ffn.up_proj.*
    ffn.down_proj.*         ffn.down_proj.*
    mixer_norm.*            norm_1.*
    ffn_norm.*              norm_2.*
    """,
    at="transformer.blocks.{i}.",
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
