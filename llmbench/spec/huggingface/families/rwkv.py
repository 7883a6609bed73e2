"""Importer for RWKV."""

from __future__ import annotations

from llmbench.spec.ffn import Dense
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import block, decoder, norm
from llmbench.spec.mixer import RWKV
from llmbench.spec.model import Embedding, ModelSpec


@family("rwkv")
def rwkv(c: Config) -> ModelSpec:
    """RWKV-4 has no attention. Its feed-forward (channel mixing) has squared ReLU and a gate of width hidden_size."""
    hidden = c.size("hidden_size")
    width = c.optional_size("attention_hidden_size") or hidden
    intermediate = c.optional_size("intermediate_size") or 4 * hidden
    ffn = Dense(intermediate_size=intermediate, activation="relu2", channel_mixing=True)
    c.ignore("context_length", "rescale_every")
    layer = block(RWKV(width=width), ffn)
    return decoder(c, layer, norm=norm(c, "layernorm"), embedding=Embedding(norm=True))
