"""Importers for MiniCPM 1 to 3 by OpenBMB."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import block, decoder, gated, latent_attention, norm, num_layers, rope
from llmbench.spec.huggingface.families.llama import llama_from_hub
from llmbench.spec.mixer import LatentAttention
from llmbench.spec.model import Embedding, Head, ModelSpec


@family("minicpm")
def minicpm(c: Config) -> ModelSpec:
    """MiniCPM 1 and 2 are Llama with a tied head, and constant factors on embedding, sublayer outputs and logits."""
    return llama_from_hub(c, tied=True)


def latent_attention_with_default_values(c: Config) -> LatentAttention:
    """Return latent attention. If v_head_dim is missing, it is hidden_size / num_attention_heads."""
    if c.get("v_head_dim") is None:
        c.put("v_head_dim", c.size("hidden_size") // c.size("num_attention_heads"))
    return latent_attention(c)


@family("minicpm3")
def minicpm3(c: Config) -> ModelSpec:
    """MiniCPM 3 is a dense model with latent attention, and constant factors on embedding, sublayer outputs and
    logits."""
    mixer = latent_attention_with_default_values(c)
    positions = rope(c, head_dim=mixer.qk_rope_head_dim)
    depth, count = c.number("scale_depth", 1.0), num_layers(c)
    base = c.number("dim_model_base", float(c.size("hidden_size"))) or 1.0
    return decoder(
        c,
        block(mixer, gated(c), residual_scale=depth / count**0.5),
        norm=norm(c),
        positions=positions,
        embedding=Embedding(scale=c.number("scale_emb", 1.0)),
        head=Head(scale=base / c.size("hidden_size")),
    )
