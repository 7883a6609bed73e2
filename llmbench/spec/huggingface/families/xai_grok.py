"""Importer for xAI's Grok."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, moe, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import Embedding, Head, ModelSpec


@family("grok-1")
def grok1(c: Config) -> ModelSpec:
    """Grok-1 has 2 of 8 experts, norms before and after the sublayers, a soft cap on attention scores, and scaled
    logits."""
    limit = c.optional_number("max_attn_value")
    mixer = attention(c, logit_soft_cap=limit, scale=c.optional_number("attn_output_multiplier"))
    ffn = moe(c, width="intermediate_size", activation="gelu")
    c.ignore("hidden_act")
    return decoder(
        c,
        block(mixer, ffn, "sandwich"),
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim),
        embedding=Embedding(scale=c.number("embedding_multiplier_scale", 1.0)),
        head=Head(scale=c.number("output_multiplier_scale", 1.0)),
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
    )
