"""Weight names of Andrej Karpathy's nanochat."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import TOP

table(
    "nanochat",
    top=TOP,
    layers="""
    attention.q_proj.*      self_attn.q_proj.*              swap.halves
    attention.k_proj.*      self_attn.k_proj.*              swap.halves
    attention.v_proj.*      self_attn.v_proj.*
    attention.o_proj.*      self_attn.o_proj.*
    ffn.up_proj.*           mlp.fc1.*
    ffn.down_proj.*         mlp.fc2.*
    """,
)
