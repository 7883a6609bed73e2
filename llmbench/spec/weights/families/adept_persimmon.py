"""Weight names of Persimmon, and of the language model in Fuyu (Adept)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.eleuther_gpt import NEOX_FFN

table(
    "persimmon",
    top="""
    embedding.weight        model.embed_tokens.weight
    final_norm.*            model.final_layernorm.*
    lm_head.*               lm_head.*
    """,
    layers=NEOX_FFN
    + """
    mixer_norm.*            input_layernorm.*
    ffn_norm.*              post_attention_layernorm.*
    attention.q_proj.*      self_attn.query_key_value.*     groups.q
    attention.k_proj.*      self_attn.query_key_value.*     groups.k
    attention.v_proj.*      self_attn.query_key_value.*     groups.v
    attention.q_norm.*      self_attn.q_layernorm.*
    attention.k_norm.*      self_attn.k_layernorm.*
    attention.o_proj.*      self_attn.dense.*
    """,
    partial_rotation=True,
)
