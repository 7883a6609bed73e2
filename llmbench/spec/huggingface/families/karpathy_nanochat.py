"""Importer for Andrej Karpathy's nanochat."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Embedding, Head, ModelSpec


@family("nanochat")
def nanochat(c: Config) -> ModelSpec:
    """nanochat has norms without weights, a norm on the embedding, squared ReLU, and a soft cap on the logits."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(weight=False, after_rope=True))
    return decoder(
        c,
        block(mixer, dense(c, bias=False, default="relu2")),
        norm=norm(c, weight=False),
        positions=rope(c, head_dim=mixer.head_dim),
        embedding=Embedding(norm=True),
        head=Head(soft_cap=c.optional_number("final_logit_softcapping")),
    )
