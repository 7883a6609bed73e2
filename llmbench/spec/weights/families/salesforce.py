"""Weight names of CTRL and CodeGen (Salesforce)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.openai_gpt import GPT2_TOP

table(
    "codegen",
    top=GPT2_TOP,
    layers="""
    norm.*                  ln_1.*
    attention.q_proj.*      attn.qkv_proj.*                 quarters.q
    attention.k_proj.*      attn.qkv_proj.*                 quarters.k
    attention.v_proj.*      attn.qkv_proj.*                 quarters.v
    attention.o_proj.*      attn.out_proj.*
    ffn.up_proj.*           mlp.fc_in.*
    ffn.down_proj.*         mlp.fc_out.*
    """,
    at="transformer.h.{i}.",
    ignored=r".*\.attn\.causal_mask",
    partial_rotation=True,
)

table(
    "ctrl",
    top="""
    embedding.weight            transformer.w.weight
    final_norm.*                transformer.layernorm.*
    lm_head.*                   lm_head.*
    """,
    layers="""
    attention.q_proj.*          multi_head_attention.Wq.*
    attention.k_proj.*          multi_head_attention.Wk.*
    attention.v_proj.*          multi_head_attention.Wv.*
    attention.o_proj.*          multi_head_attention.dense.*
    ffn.up_proj.*               ffn.0.*
    ffn.down_proj.*             ffn.2.*
    mixer_norm.*                layernorm1.*
    ffn_norm.*                  layernorm2.*
    """,
    at="transformer.h.{i}.",
)
