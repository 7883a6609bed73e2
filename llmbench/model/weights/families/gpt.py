"""GPT-2's line: fused projections, each in its own order."""

from __future__ import annotations

from llmbench.model.weights.families import table

GPT2_TOP = """
embedding.weight            transformer.wte.weight
position_embedding.weight   transformer.wpe.weight
final_norm.*                transformer.ln_f.*
lm_head.*                   lm_head.*
"""

table(
    "gpt2",
    top=GPT2_TOP,
    layers="""
    attention.q_proj.*      attn.c_attn.*       t plain.q
    attention.k_proj.*      attn.c_attn.*       t plain.k
    attention.v_proj.*      attn.c_attn.*       t plain.v
    attention.o_proj.*      attn.c_proj.*       t
    ffn.up_proj.*           mlp.c_fc.*          t
    ffn.down_proj.*         mlp.c_proj.*        t
    mixer_norm.*            ln_1.*
    ffn_norm.*              ln_2.*
    """,
    at="transformer.h.{i}.",
    ignored=r".*\.attn\.(masked_)?bias",
)
