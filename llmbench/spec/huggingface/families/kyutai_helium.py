"""Importer for Kyutai's Helium."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, gated, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec


@family("helium")
def helium(c: Config) -> ModelSpec:
    """Helium has Llama's architecture. `attention_bias` gives biases to q, k and v only."""
    mixer = attention(c, qkv_bias=c.flag("attention_bias"))
    if mixer.num_attention_heads * mixer.head_dim != c.size("hidden_size"):
        c.doubt("Helium's output projection expects that num_attention_heads × head_dim equals hidden_size")
    positions = rope(c, head_dim=mixer.head_dim, interleaved=True)
    return decoder(c, block(mixer, gated(c)), norm=norm(c), positions=positions)
