"""Importer for Baichuan's models."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, gated, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Alibi


@family("baichuan")
def baichuan(c: Config) -> ModelSpec:
    """Baichuan 1 and 2 have Llama's architecture with multi-head attention. The 13B models have ALiBi instead of
    RoPE."""
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"))
    positions = Alibi() if c.size("hidden_size") == 5120 else rope(c, head_dim=mixer.head_dim)
    if c.size("vocab_size") == 125696:
        c.unbuildable("vocab_size = 125696 means Baichuan 2: its head normalises each row of its matrix to length 1")
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=positions)
