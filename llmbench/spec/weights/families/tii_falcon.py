"""Weight names of Falcon, Falcon-Mamba and Falcon-H1 (TII)."""

from __future__ import annotations

from llmbench.spec.weights.families import table
from llmbench.spec.weights.families.bigscience_bloom import BLOOM_ATTENTION
from llmbench.spec.weights.families.common import ATTENTION
from llmbench.spec.weights.families.eleuther_gpt import NEOX_FFN
from llmbench.spec.weights.families.mamba import (
    BACKBONE,
    HYBRID_GATED,
    HYBRID_PRE_NORMS,
    HYBRID_TOP,
    MAMBA_BESIDE_ATTENTION,
    STATE_SPACE,
)

# Falcon-7B has one norm per layer. Falcon-40B has two parallel norms. Falcon-RW-1B and RW-7B have one norm before each
# sublayer.
table(
    "falcon",
    top="""
    embedding.weight        transformer.word_embeddings.weight
    final_norm.*            transformer.ln_f.*
    lm_head.*               lm_head.*
    """,
    layers=BLOOM_ATTENTION
    + NEOX_FFN
    + """
    norm.*                  input_layernorm.*
    mixer_norm.*            ln_attn.*
    ffn_norm.*              ln_mlp.*
    mixer_norm.*            input_layernorm.*
    ffn_norm.*              post_attention_layernorm.*
    """,
    at="transformer.h.{i}.",
)

table("falcon_mamba", top=BACKBONE, layers=STATE_SPACE, at="backbone.layers.{i}.")

table(
    "falcon_h1",
    top=HYBRID_TOP,
    layers=MAMBA_BESIDE_ATTENTION + ATTENTION + HYBRID_GATED + HYBRID_PRE_NORMS,
)
