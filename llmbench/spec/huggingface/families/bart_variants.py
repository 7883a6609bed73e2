"""Importers for encoder-decoders that change a part of BART: LED, BigBird-Pegasus, PEGASUS-X, FSMT and ProphetNet."""

from __future__ import annotations

import msgspec

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.bart import unused_cross_attention
from llmbench.spec.huggingface.families.common import block, decoder, dense, matrix, norm, per_layer, vector
from llmbench.spec.huggingface.families.masked_lm import expect_full_attention, global_projections, longformer_windows
from llmbench.spec.huggingface.layer_lists import expect_depths
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec, Placement, Stack
from llmbench.spec.position import LearnedPositions, SinusoidalPositions


@family("led")
def led(c: Config) -> ModelSpec:
    """LED is BART with Longformer's attention in the encoder."""
    hidden, depth, decoder_depth = _depths(c, "encoder_layers", "decoder_layers")
    extra = global_projections(hidden)
    encoder = [
        ("block", _layer(c, "encoder", sliding_window=window, extra=extra)) for window in longformer_windows(c, depth)
    ]
    layers, pattern = per_layer(c, encoder)
    return decoder(
        c,
        [("block", _layer(c, "decoder"))] * decoder_depth,
        norm=norm(c, "layernorm"),
        positions=LearnedPositions(num_positions=c.size("max_decoder_position_embeddings")),
        final_norm=False,
        embedding=Embedding(norm=True),
        encoder=Stack(
            layers=layers,
            pattern=pattern,
            final_norm=False,
            positions=LearnedPositions(num_positions=c.size("max_encoder_position_embeddings")),
            embedding_norm=True,
        ),
        head=Head(fixed_bias=True),
    )


@family("bigbird_pegasus")
def bigbird_pegasus(c: Config) -> ModelSpec:
    """BigBird-Pegasus is Pegasus with BigBird's block-sparse attention in the encoder. Attention can lack biases.

    With `is_encoder_decoder` = false, the model is the decoder alone, as in BART. Its head is never tied.
    """
    hidden, depth, decoder_depth = _depths(c, "encoder_layers", "decoder_layers")
    alone, bias = not c.flag("is_encoder_decoder", True), c.flag("use_bias")
    positions = LearnedPositions(num_positions=c.size("max_position_embeddings"))
    layer = _layer(c, "decoder", "pre", bias=bias)
    encoder = Stack(
        layers={"block": _layer(c, "encoder", "pre", bias=bias)}, pattern=f"{depth}*block", positions=positions
    )
    if alone:
        c.ignore("attention_type", "block_size", "num_random_blocks")
        unused = unused_cross_attention(hidden, hidden, biases=4 if bias else 0)
        layer = msgspec.structs.replace(layer, cross_attention=None, extra=unused)
    else:
        expect_full_attention(c)
    return decoder(
        c,
        [("block", layer)] * decoder_depth,
        norm=norm(c, "layernorm"),
        positions=positions,
        tie_word_embeddings=c.flag("tie_word_embeddings") and not alone,
        embedding=Embedding(scale=hidden**0.5 if c.flag("scale_embedding") else 1.0),
        head=Head(fixed_bias=not alone),
        encoder=None if alone else encoder,
    )


@family("pegasus_x")
def pegasus_x(c: Config) -> ModelSpec:
    """PEGASUS-X is Pegasus with attention in blocks and global tokens in the encoder. Its attention has no biases.

    The global tokens have a table of vectors. They use the same projections as the tokens of the text.
    """
    hidden, depth, decoder_depth = _depths(c, "encoder_layers", "decoder_layers")
    c.ignore("max_position_embeddings", "stagger_local_blocks")
    tokens, size = c.size("num_global_tokens"), c.size("block_size")
    c.doubt(
        f"the encoder's attention in blocks of {size} tokens is counted as a sliding window, and the computation of its"
        f" {tokens} global tokens is not counted"
    )
    global_norm = vector("global_norm", "norms", 2, hidden)
    encoder = _layer(c, "encoder", "pre", bias=False, sliding_window=size, extra=(global_norm,))
    positions = SinusoidalPositions(halves=True, to_end=True)
    table = ExtraWeight(name="global_embedding", shape=(tokens, hidden), role="table", component="embedding")
    return decoder(
        c,
        [("block", _layer(c, "decoder", "pre", bias=False))] * decoder_depth,
        norm=norm(c, "layernorm"),
        positions=positions,
        embedding=Embedding(scale=hidden**0.5 if c.flag("scale_embedding") else 1.0),
        encoder=Stack(layers={"block": encoder}, pattern=f"{depth}*block", positions=positions),
        extra=(table,),
    )


@family("fsmt")
def fsmt(c: Config) -> ModelSpec:
    """FSMT is the translation model of fairseq: the original Transformer with two vocabularies.

    Its sinusoidal positions are a table of parameters.
    """
    hidden, depth, decoder_depth = _depths(c, "encoder_layers", "decoder_layers")
    c.ignore("langs", "num_beams", "length_penalty", "early_stopping", "max_length")
    padding, source = c.count("pad_token_id", 1), c.size("src_vocab_size")
    positions = LearnedPositions(
        num_positions=c.size("max_position_embeddings") + padding + 1, offset=padding + 1, uncounted=padding
    )
    tied = c.flag("tie_word_embeddings")
    return decoder(
        c,
        [("block", _layer(c, "decoder"))] * decoder_depth,
        norm=norm(c, "layernorm"),
        positions=positions,
        final_norm=False,
        embedding=Embedding(scale=hidden**0.5 if c.flag("scale_embedding") else 1.0),
        encoder=Stack(
            layers={"block": _layer(c, "encoder")},
            pattern=f"{depth}*block",
            final_norm=False,
            positions=positions,
            vocab_size=None if tied else source,
        ),
    )


@family("prophetnet")
def prophetnet(c: Config) -> ModelSpec:
    """ProphetNet's decoder predicts several next tokens at once, each in a stream of its own."""
    hidden, depth, decoder_depth = _depths(c, "num_encoder_layers", "num_decoder_layers")
    streams, heads = c.size("ngram"), c.size("num_decoder_attention_heads")
    c.doubt(f"the decoder's {streams} streams for future tokens are counted as the text itself: one stream")
    c.ignore("relative_max_distance", "disable_ngram_loss", "eps")
    buckets = heads * c.size("num_buckets")
    relative = (
        matrix("attention.relative_positions", "attention_extra", buckets, hidden),
        vector("attention.relative_positions_bias", "attention_extra", buckets),
    )
    positions = LearnedPositions(num_positions=c.size("max_position_embeddings"))
    table = ExtraWeight(name="ngram_embedding", shape=(streams, hidden), role="table", component="embedding")
    return decoder(
        c,
        [("block", _layer(c, "decoder", heads=heads, extra=relative))] * decoder_depth,
        norm=norm(c, "layernorm"),
        positions=positions,
        final_norm=False,
        embedding=Embedding(norm=True),
        encoder=Stack(
            layers={"block": _layer(c, "encoder", heads=c.size("num_encoder_attention_heads"))},
            pattern=f"{depth}*block",
            final_norm=False,
            positions=positions,
            embedding_norm=True,
        ),
        extra=(table,),
    )


def _depths(c: Config, encoder: str, decoder: str) -> tuple[int, int, int]:
    """Return the width, and the numbers of layers of the encoder and of the decoder, which the given keys state.

    The importer can then build the decoder: `num_hidden_layers` has its number of layers.
    """
    depth, decoder_depth = c.size(encoder), c.size(decoder)
    expect_depths(c, depth, decoder_depth)
    c.put("num_hidden_layers", decoder_depth)
    c.ignore("num_hidden_layers")
    return c.size("hidden_size"), depth, decoder_depth


def _layer(
    c: Config,
    side: str,
    placement: Placement = "post",
    *,
    heads: int | None = None,
    bias: bool = True,
    sliding_window: int | None = None,
    extra: tuple[ExtraWeight, ...] = (),
) -> Layer:
    """Return a layer of BART's kind.

    - side: "encoder" or "decoder".
    - heads: number of heads. None: the config key `encoder_attention_heads` or `decoder_attention_heads` states it.
    - bias: the projections of the attention have biases.
    - sliding_window: the window of the self-attention.
    - extra: extra weights of the layer.
    """
    heads = heads or c.size(f"{side}_attention_heads")
    head_dim = c.size("hidden_size") // heads

    def attention(*, causal: bool, window: int | None) -> Attention:
        return Attention(
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=head_dim,
            qkv_bias=bias,
            output_bias=bias,
            causal=causal,
            sliding_window=window,
        )

    return block(
        attention(causal=side == "decoder", window=sliding_window),
        dense(c, bias=True, width=c.size(f"{side}_ffn_dim"), keys=("activation_function",)),
        placement,
        cross_attention=attention(causal=False, window=None) if side == "decoder" else None,
        extra=extra,
    )
