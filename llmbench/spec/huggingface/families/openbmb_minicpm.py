"""Importers for CPM-Ant and MiniCPM 1 to 3 by OpenBMB."""

from __future__ import annotations

from llmbench.spec.ffn import Gated
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import block, decoder, gated, latent_attention, norm
from llmbench.spec.huggingface.families.llama import llama_from_hub
from llmbench.spec.huggingface.layer_lists import num_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Attention, LatentAttention
from llmbench.spec.model import Embedding, ExtraWeight, Head, ModelSpec, Norm
from llmbench.spec.position import RelativeBias


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


@family("cpmant")
def cpm_ant(c: Config) -> ModelSpec:
    """CPM-Ant has T5's relative bias, also for pairs of segments, and rows for soft prompts in its token table.

    All layers use one table of biases.
    """
    heads, hidden = c.size("num_attention_heads"), c.size("hidden_size")
    segments, prompts = c.size("segment_types"), c.size("prompt_types") * c.size("prompt_length")
    positions = RelativeBias(
        num_buckets=c.size("position_bias_num_buckets") + segments**2,
        max_distance=c.size("position_bias_max_distance"),
    )
    c.unbuildable("the biases for pairs of segments are unsupported")
    mixer = Attention(num_attention_heads=heads, num_key_value_heads=heads, head_dim=c.size("dim_head"))
    ffn = Gated(intermediate_size=c.size("dim_ff"), activation="gelu")
    c.ignore("tie_word_embeddings")  # the class never ties the head
    return decoder(
        c,
        block(mixer, ffn),
        norm=Norm(eps=c.number("eps", 1e-6)),
        positions=positions,
        tie_word_embeddings=False,
        embedding=Embedding(token_types=segments),
        extra=(ExtraWeight(name="prompt_embedding", shape=(prompts, hidden), role="table", component="embedding"),),
    )
