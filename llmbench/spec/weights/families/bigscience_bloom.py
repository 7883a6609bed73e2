"""Weight names of BLOOM (BigScience)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.eleuther_gpt import NEOX_FFN

BLOOM_ATTENTION = """
attention.q_proj.*          self_attention.query_key_value.*    groups.q
attention.k_proj.*          self_attention.query_key_value.*    groups.k
attention.v_proj.*          self_attention.query_key_value.*    groups.v
attention.o_proj.*          self_attention.dense.*
"""

table(
    "bloom",
    top="""
    embedding.weight        transformer.word_embeddings.weight
    embedding_norm.*        transformer.word_embeddings_layernorm.*
    final_norm.*            transformer.ln_f.*
    lm_head.*               lm_head.*
    """,
    layers=BLOOM_ATTENTION
    + NEOX_FFN
    + """
    mixer_norm.*            input_layernorm.*
    ffn_norm.*              post_attention_layernorm.*
    """,
    at="transformer.h.{i}.",
)
