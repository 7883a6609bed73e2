"""Importer for the language model of Molmo 2 by the Allen Institute for AI."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, gated, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import ExtraWeight, ModelSpec


@family("molmo2_text")
def molmo2(c: Config) -> ModelSpec:
    """Molmo 2 has Qwen3's or OLMo 2's layers. Its token table has more rows than its head has outputs."""
    olmo = c.text("qk_norm_type", "qwen3") == "olmo"
    c.require("qk_norm_type", "qwen3", "olmo")
    mixer = attention(c, qkv_bias=c.flag("attention_bias"), qk_norm=QKNorm(over="full" if olmo else "head"))
    layers = c.entries("rope_scaling_layers")
    if layers is not None and len(layers) < c.size("num_hidden_layers"):
        c.unbuildable("rope_scaling_layers: RoPE is scaled only in some layers")
    rows, extra = c.count("additional_vocab_size"), []
    if rows:
        shape = (rows, c.size("hidden_size"))
        extra.append(ExtraWeight(name="additional_embedding", shape=shape, role="table", component="embedding"))
    return decoder(
        c,
        block(mixer, gated(c, bias=False), "output" if c.flag("norm_after") else "pre"),
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim),
        extra=tuple(extra),
    )
