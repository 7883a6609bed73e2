"""Importer for Apple's OpenELM."""

from __future__ import annotations

from llmbench.spec.ffn import Dense, Gated
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import activation, attention, block, decoder, norm
from llmbench.spec.huggingface.layer_lists import layer_size
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Layer, ModelSpec


@family("openelm")
def openelm(c: Config) -> ModelSpec:
    """OpenELM has norms on q and k, and a head that is tied to the embedding.

    Later layers have more heads and wider feed-forwards than earlier layers.
    """
    hidden, count = c.size("model_dim"), c.size("num_transformer_layers")
    c.put("hidden_size", hidden)
    c.put("num_hidden_layers", count)
    heads = c.entries("num_query_heads", count) or []
    kv_heads = c.entries("num_kv_heads", count) or []
    factors = c.entries("ffn_multipliers", count) or []
    if not (heads and kv_heads and factors):
        raise c.error(
            "num_query_heads", "must be a list with one entry per layer, like num_kv_heads and ffn_multipliers"
        )
    head_dim, divisor = c.size("head_dim"), c.size("ffn_dim_divisor", 256)
    c.require("normalization_layer_name", "rms_norm")
    c.ignore("num_gqa_groups", "qkv_multipliers", "max_context_length", "rope_max_length")
    c.put("rope_theta", c.number("rope_freq_constant", 10000.0))
    qk_norm = QKNorm() if c.flag("normalize_qk_projections") else None
    with_glu, act = c.flag("ffn_with_glu", True), activation(c, "activation_fn_name")
    layers: list[tuple[str, Layer]] = []
    for num_heads, num_kv_heads, factor in zip(heads, kv_heads, factors, strict=True):
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1000:
            raise c.error(
                "ffn_multipliers", f"has the entry {str(factor)[:40]}; each must be a number between 0 and 1000"
            )
        width = max(divisor, int(factor * hidden + divisor / 2) // divisor * divisor)
        width += divisor if width < 0.9 * factor * hidden else 0
        mixer = attention(
            c,
            num_attention_heads=layer_size(c, "num_query_heads", num_heads),
            num_key_value_heads=layer_size(c, "num_kv_heads", num_kv_heads),
            head_dim=head_dim,
            qk_norm=qk_norm,
        )
        ffn = (Gated if with_glu else Dense)(intermediate_size=width, activation=act)
        layers.append(("block", block(mixer, ffn)))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim),
        tie_word_embeddings=c.flag("share_input_output_layers", True),
    )
