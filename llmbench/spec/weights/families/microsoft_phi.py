"""Weight names of Phi 1 to 4, BitNet and BioGPT (Microsoft)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.common import (
    ATTENTION,
    FUSED_GATED,
    GATED,
    MIXTRAL_EXPERTS,
    PARALLEL_NORM,
    PRE_NORMS,
    QK_NORM,
    TOP,
)
from llmbench.spec.weights.families.meta import FAIRSEQ_LAYERS

table(
    "biogpt",
    top="""
    embedding.weight            biogpt.embed_tokens.weight
    position_embedding.weight   biogpt.embed_positions.weight
    final_norm.*                biogpt.layer_norm.*
    lm_head.*                   output_projection.*
    """,
    layers=FAIRSEQ_LAYERS,
    at="biogpt.layers.{i}.",
)

table(
    "phi3",
    "phi4_multimodal",
    top=TOP,
    layers=FUSED_GATED
    + PRE_NORMS
    + """
    attention.q_proj.*      self_attn.qkv_proj.*            plain.q
    attention.k_proj.*      self_attn.qkv_proj.*            plain.k
    attention.v_proj.*      self_attn.qkv_proj.*            plain.v
    attention.o_proj.*      self_attn.o_proj.*
    """,
    ignored=r"model\.embed_tokens_extend\..*",
    partial_rotation=True,
)

table(
    "phi",
    top="""
    embedding.weight        model.embed_tokens.weight
    final_norm.*            model.final_layernorm.*
    lm_head.*               lm_head.*
    """,
    layers=PARALLEL_NORM
    + """
    attention.q_proj.*      self_attn.q_proj.*
    attention.k_proj.*      self_attn.k_proj.*
    attention.v_proj.*      self_attn.v_proj.*
    attention.o_proj.*      self_attn.dense.*
    attention.q_norm.*      self_attn.q_layernorm.*
    attention.k_norm.*      self_attn.k_layernorm.*
    ffn.up_proj.*           mlp.fc1.*
    ffn.down_proj.*         mlp.fc2.*
    """,
    partial_rotation=True,
)

table("phimoe", top=TOP, layers=ATTENTION + QK_NORM + MIXTRAL_EXPERTS + PRE_NORMS)

table(
    "bitnet",
    top=TOP,
    layers=ATTENTION
    + GATED
    + PRE_NORMS
    + """
    attention.o_norm.*      self_attn.attn_sub_norm.*
    ffn.inner_norm.*        mlp.ffn_sub_norm.*
    """,
)
