"""Weight names of StarCoder 1 and 2 (BigCode)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import ATTENTION, PRE_NORMS, TOP
from llmbench.spec.weights.families.openai_gpt import GPT2_NORMS, GPT2_TOP

# c_attn is a fused projection. In models with one KV head (MQA), it has all queries, then the key, then the value. In
# models with MHA, it has query, key and value of each head.
table(
    "gpt_bigcode",
    top=GPT2_TOP,
    layers=GPT2_NORMS
    + """
    attention.q_proj.*      attn.c_attn.*                   groups.q
    attention.k_proj.*      attn.c_attn.*                   groups.k
    attention.v_proj.*      attn.c_attn.*                   groups.v
    attention.o_proj.*      attn.c_proj.*
    ffn.up_proj.*           mlp.c_fc.*
    ffn.down_proj.*         mlp.c_proj.*
    """,
    at="transformer.h.{i}.",
    ignored=r".*\.attn\.bias",
)

table(
    "starcoder2",
    top=TOP,
    layers=ATTENTION
    + PRE_NORMS
    + """
    ffn.up_proj.*           mlp.c_fc.*
    ffn.down_proj.*         mlp.c_proj.*
    """,
)
