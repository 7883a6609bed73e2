"""Importer for ByteDance's Seed."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, gated, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec


@family("seed_oss")
def seed_oss(c: Config) -> ModelSpec:
    """Seed-OSS has Llama's architecture, with biases on q, k and v (`attention_bias`), and on o
    (`attention_out_bias`)."""
    mixer = attention(c, qkv_bias=c.flag("attention_bias"), output_bias=c.flag("attention_out_bias"))
    return decoder(c, block(mixer, gated(c)), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))
