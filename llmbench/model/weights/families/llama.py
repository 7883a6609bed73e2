"""LLaMA's names, which most decoders use, and what differs from them by family."""

from __future__ import annotations

from llmbench.model.weights.families import table

TOP = """
embedding.weight        model.embed_tokens.weight
final_norm.*            model.norm.*
lm_head.*               lm_head.*
"""

ATTENTION = """
attention.q_proj.*      self_attn.q_proj.*
attention.k_proj.*      self_attn.k_proj.*
attention.v_proj.*      self_attn.v_proj.*
attention.o_proj.*      self_attn.o_proj.*
"""

GATED = """
ffn.gate_proj.*         mlp.gate_proj.*
ffn.up_proj.*           mlp.up_proj.*
ffn.down_proj.*         mlp.down_proj.*
"""

PRE_NORMS = """
mixer_norm.*            input_layernorm.*
ffn_norm.*              post_attention_layernorm.*
"""

table("llama", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)
