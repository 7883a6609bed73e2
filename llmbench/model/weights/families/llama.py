"""LLaMA's names, which most decoders use, and the dense families that differ from them in a thing or two."""

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

QK_NORM = """
attention.q_norm.*      self_attn.q_norm.*
attention.k_norm.*      self_attn.k_norm.*
"""

GATED = """
ffn.gate_proj.*         mlp.gate_proj.*
ffn.up_proj.*           mlp.up_proj.*
ffn.down_proj.*         mlp.down_proj.*
"""

FUSED_GATED = """
ffn.gate_proj.*         mlp.gate_up_proj.*              first.half
ffn.up_proj.*           mlp.gate_up_proj.*              second.half
ffn.down_proj.*         mlp.down_proj.*
"""

PRE_NORMS = """
mixer_norm.*            input_layernorm.*
ffn_norm.*              post_attention_layernorm.*
"""

OUTPUT_NORMS = """
post_mixer_norm.*       post_attention_layernorm.*
post_ffn_norm.*         post_feedforward_layernorm.*
"""

SANDWICH_NORMS = """
mixer_norm.*            input_layernorm.*
post_mixer_norm.*       post_attention_layernorm.*
ffn_norm.*              pre_feedforward_layernorm.*
post_ffn_norm.*         post_feedforward_layernorm.*
"""

PARALLEL_NORM = """
norm.*                  input_layernorm.*
"""

table("llama", "mistral", "ministral", "ministral3", "qwen2", "cwm", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)
table("gemma", "granite", "seed_oss", "smollm3", "helium", "ernie4_5", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)
table("internlm3", "iquestcoder", "eurobert", top=TOP, layers=ATTENTION + GATED + PRE_NORMS)
table("qwen3", top=TOP, layers=ATTENTION + QK_NORM + GATED + PRE_NORMS)
table("olmo", top=TOP, layers=ATTENTION + GATED)
table("olmo2", "olmo3", "exaone4", top=TOP, layers=ATTENTION + QK_NORM + GATED + OUTPUT_NORMS)
table("gemma2", "gemma3_text", top=TOP, layers=ATTENTION + QK_NORM + GATED + SANDWICH_NORMS)
table(
    "vaultgemma",
    top=TOP,
    layers=ATTENTION
    + GATED
    + """
    mixer_norm.*            input_layernorm.*
    ffn_norm.*              pre_feedforward_layernorm.*
    """,
)
table("cohere", "cohere2", "cohere_compass_text", top=TOP, layers=ATTENTION + QK_NORM + GATED + PARALLEL_NORM)

table(
    "hunyuan_v1_dense",
    top=TOP,
    layers=ATTENTION
    + GATED
    + PRE_NORMS
    + """
    attention.q_norm.*      self_attn.query_layernorm.*
    attention.k_norm.*      self_attn.key_layernorm.*
    """,
)

table(
    "stablelm",
    top=TOP,
    layers=ATTENTION
    + GATED
    + PRE_NORMS
    + PARALLEL_NORM
    + """
    attention.q_norm.weight self_attn.q_layernorm.norms.{e}.weight
    attention.k_norm.weight self_attn.k_layernorm.norms.{e}.weight
    """,
)

table(
    "glm4",
    top=TOP,
    layers=ATTENTION
    + FUSED_GATED
    + """
    mixer_norm.*            input_layernorm.*
    post_mixer_norm.*       post_self_attn_layernorm.*
    ffn_norm.*              post_attention_layernorm.*
    post_ffn_norm.*         post_mlp_layernorm.*
    """,
)
table("glm", top=TOP, layers=ATTENTION + FUSED_GATED + PRE_NORMS)

table(
    "phi3",
    top=TOP,
    layers=FUSED_GATED
    + PRE_NORMS
    + """
    attention.q_proj.*      self_attn.qkv_proj.*            plain.q
    attention.k_proj.*      self_attn.qkv_proj.*            plain.k
    attention.v_proj.*      self_attn.qkv_proj.*            plain.v
    attention.o_proj.*      self_attn.o_proj.*
    """,
)

UP_DOWN = """
ffn.up_proj.*           mlp.up_proj.*
ffn.down_proj.*         mlp.down_proj.*
"""
table("arcee", "jais2", "nemotron", top=TOP, layers=ATTENTION + UP_DOWN + PRE_NORMS)
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

table(
    "hyperclovax",
    top=TOP,
    layers=ATTENTION
    + GATED
    + PRE_NORMS
    + """
    post_mixer_norm.*       post_norm1.*
    post_ffn_norm.*         post_norm2.*
    """,
)
table("granite_swa", top=TOP, layers=ATTENTION + GATED + PRE_NORMS + "attention.sinks self_attn.sinks")
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
)
