"""Importers for T5Gemma 1 and 2 by Google: encoder-decoders whose two sides are Gemma models."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.facts import defaults_of, facts
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, gated, norm, per_layer, vector
from llmbench.spec.huggingface.families.google import gemma3
from llmbench.spec.huggingface.layer_lists import num_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Embedding, Head, Layer, ModelSpec, Stack


@family("t5gemma")
def t5gemma(c: Config) -> ModelSpec:
    """T5Gemma has a Gemma 2 as encoder and a Gemma 2 as decoder, each with its own token table and width."""
    module = facts()["t5_gemma_module"]["defaults"]
    inner, outer = c.sub("encoder", defaults=module), c.sub("decoder", defaults=module)
    # The sizes are read from the objects `encoder` and `decoder`, not from the top level of the config.
    c.ignore("encoder", "decoder", "vocab_size", "hidden_size", "num_hidden_layers")

    def stack(side: Config, *, causal: bool) -> list[tuple[str, Layer]]:
        """Return the layers of the decoder if `causal`, otherwise the layers of the encoder."""
        bias = side.flag("attention_bias")
        side.ignore(
            "is_decoder",
            "cross_attention_hidden_size",
            "use_bidirectional_attention",
        )
        count, window = num_layers(side), side.window()
        kinds = side.entries("layer_types", count) or [
            "full_attention" if index % 2 else "sliding_attention" for index in range(count)
        ]
        shape: dict[str, Any] = {"qkv_bias": bias, "output_bias": bias}
        shape["scale"] = side.number("query_pre_attn_scalar", 256) ** -0.5
        soft_cap = side.optional_number("attn_logit_softcapping")
        cross = attention(side, causal=False, logit_soft_cap=soft_cap, **shape) if causal else None
        layers = []
        for kind in kinds:
            local = kind == "sliding_attention"
            span = window if local else None
            if span is not None and not causal:
                span = 2 * span  # the encoder's window has keys before and after the query
            mixer = attention(side, causal=causal, sliding_window=span, logit_soft_cap=soft_cap, **shape)
            layer = block(mixer, gated(side, bias=False), "sandwich", cross_attention=cross)
            layers.append(("local" if local else "global", layer))
        return layers

    encoder_layers, encoder_pattern = per_layer(c, stack(inner, causal=False))
    layers = stack(outer, causal=True)
    vocab, hidden, encoder_hidden = (
        outer.size("vocab_size"),
        outer.size("hidden_size"),
        inner.size("hidden_size"),
    )
    c.put("num_hidden_layers", len(layers))
    soft_cap = outer.optional_number("final_logit_softcapping")
    inner.ignore("final_logit_softcapping", "tie_word_embeddings", "max_position_embeddings", "rope_theta")
    outer.ignore("tie_word_embeddings", "max_position_embeddings")
    positions = rope(outer, head_dim=outer.size("head_dim"))
    encoder = Stack(
        layers=encoder_layers,
        pattern=encoder_pattern,
        positions=rope(inner, head_dim=inner.size("head_dim")),
        vocab_size=inner.size("vocab_size"),
        hidden_size=None if encoder_hidden == hidden else encoder_hidden,
        embedding_scale=None if encoder_hidden == hidden else encoder_hidden**0.5,
    )
    inner.doubt_unread()
    outer.doubt_unread()
    return decoder(
        c,
        layers,
        norm=norm(outer, unit_offset=True),
        positions=positions,
        vocab_size=vocab,
        hidden_size=hidden,
        embedding=Embedding(scale=hidden**0.5),
        head=Head(soft_cap=soft_cap),
        encoder=encoder,
    )


@family("t5gemma2")
def t5gemma2(c: Config) -> ModelSpec:
    """T5Gemma 2 has a Gemma 3 as encoder and a Gemma 3 as decoder, with one token table.

    Each attention of the decoder sees the tokens of the decoder and of the encoder, with the same projections.
    """
    whole = c.nested("encoder", c.table("encoder"))
    inner = _gemma3(c, "encoder.text_config", whole.table("text_config"), "t5gemma2_text")
    outer = _gemma3(c, "decoder", c.table("decoder"), "t5gemma2_decoder")
    if (inner.hidden_size, inner.vocab_size) != (outer.hidden_size, outer.vocab_size):
        raise c.error(
            "encoder", "must have the hidden_size and the vocab_size of the decoder: they share a token table"
        )
    whole.ignore("tie_word_embeddings")
    whole.doubt_unread()
    c.ignore("encoder decoder vocab_size num_hidden_layers")
    c.doubt("the decoder's attention also sees the encoder's tokens: FLOPs and KV cache do not include this")
    c.unbuildable("attention over the tokens of encoder and decoder together is unsupported")
    return replace(
        outer,
        tie_word_embeddings=c.flag("tie_word_embeddings"),
        encoder=Stack(
            layers={name: _bidirectional(layer) for name, layer in inner.layers.items()},
            pattern=inner.pattern,
            positions=inner.positions,
        ),
        extra=(vector("eoi_embedding", "embedding", outer.hidden_size),),
        family=c.model_type,
    )


def _gemma3(c: Config, path: str, values: dict[str, Any], model_type: str) -> ModelSpec:
    """Return one side of T5Gemma 2 as a Gemma 3.

    - path: the keys of the side in the config, joined by dots.
    - values: the keys of the side with their values.
    - model_type: the model type of the side, whose defaults are used.
    """
    side = c.nested(path, values, defaults_of(model_type, values))
    side.model_type = "gemma3_text"
    side.ignore("dropout_rate", "tie_word_embeddings")
    spec = gemma3(side)
    side.doubt_unread()
    return spec


def _bidirectional(layer: Layer) -> Layer:
    """Return the layer with an attention that also sees later tokens."""
    assert isinstance(layer.mixer, Attention)
    return replace(layer, mixer=replace(layer.mixer, causal=False))
