"""Importers for models that write the text of speech: Whisper, Speech2Text and Moonshine.

An encoder reads sound through a few convolutions, and a decoder writes text.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from llmbench.spec.ffn import Gated
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.bart import unused_cross_attention
from llmbench.spec.huggingface.families.common import activation, block, decoder, dense, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Embedding, ExtraWeight, Layer, ModelSpec, Stack
from llmbench.spec.position import LearnedPositions, Positions, SinusoidalPositions

Front = tuple[ExtraWeight, ...]
"""The weights between the sound and the first layer of the encoder."""


def convolution(name: str, inputs: int, outputs: int, kernel: int, *, uses: int = 1, bias: bool = True) -> Front:
    """Return the weights of a convolution over time. Each output reads `kernel` steps of all inputs.

    uses: number of steps that the convolution computes per position of the encoder.
    """
    weight = ExtraWeight(name=f"{name}.weight", shape=(outputs, inputs, kernel), role="convolution", uses=uses)
    return (weight, ExtraWeight(name=f"{name}.bias", shape=(outputs,), role="vector")) if bias else (weight,)


def listener(
    c: Config,
    encoder: Layer,
    depth: int,
    writing: Layer,
    *,
    encoder_positions: Positions,
    front: Front,
    length: int | None = None,
    **fields: Any,
) -> ModelSpec:
    """Return a model with `depth` encoder layers and the decoder layer `writing`.

    front: the weights before the encoder. length: number of positions of every input. fields: see `decoder`.
    """
    c.unbuildable("the encoder reads sound, not tokens")
    return decoder(
        c,
        writing,
        encoder=Stack(
            layers={"block": encoder},
            pattern=f"{depth}*block",
            positions=encoder_positions,
            length=length,
            extra=front,
        ),
        **fields,
    )


def _pre_norm_layer(c: Config, side: str, *, key_bias: bool) -> Layer:
    """Return a layer of the encoder or of the decoder, with biases, in the form of BART's configs."""
    heads, hidden = c.size(f"{side}_attention_heads"), c.size("d_model")
    if hidden % heads:
        raise c.error(f"{side}_attention_heads", f"{heads} does not divide d_model {hidden}")

    def attends(*, causal: bool) -> Attention:
        return Attention(
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden // heads,
            qkv_bias=True,
            key_bias=key_bias,
            output_bias=True,
            causal=causal,
        )

    cross = attends(causal=False) if side == "decoder" else None
    ffn = dense(c, bias=True, width=c.size(f"{side}_ffn_dim"), keys=("activation_function",))
    return block(attends(causal=side == "decoder"), ffn, cross_attention=cross)


@family("whisper")
def whisper(c: Config) -> ModelSpec:
    """Whisper reads a spectrogram of 30 seconds. The second of its two convolutions has stride 2.

    The sinusoidal positions of the encoder are stored as a table. The k projections have no biases.

    With `is_encoder_decoder` = false, the model is the decoder alone, as in BART.
    """
    hidden, steps, depth = c.size("d_model"), c.size("max_source_positions"), c.size("encoder_layers")
    c.ignore("max_length median_filter_width apply_spec_augment mask_time_prob mask_time_length mask_time_min_masks")
    c.ignore("mask_feature_prob mask_feature_length mask_feature_min_masks classifier_proj_size use_weighted_layer_sum")
    c.ignore("scale_embedding")  # the class in transformers does not scale
    c.put("num_hidden_layers", c.size("decoder_layers"))
    front = convolution("conv1", c.size("num_mel_bins"), hidden, 3, uses=2) + convolution("conv2", hidden, hidden, 3)
    reading, writing = (_pre_norm_layer(c, side, key_bias=False) for side in ("encoder", "decoder"))
    fields: dict[str, Any] = {
        "norm": norm(c, "layernorm"),
        "positions": LearnedPositions(num_positions=c.size("max_target_positions")),
    }
    if not c.flag("is_encoder_decoder", True):
        unused = unused_cross_attention(hidden, hidden, biases=3)
        return decoder(c, replace(writing, cross_attention=None, extra=unused), **fields)
    c.note(f"the encoder reads {steps:,} positions of sound for every sequence, whatever its length in tokens")
    return listener(
        c,
        reading,
        depth,
        writing,
        encoder_positions=LearnedPositions(num_positions=steps),
        front=front,
        length=steps,
        **fields,
    )


@family("speech_to_text")
def speech_to_text(c: Config) -> ModelSpec:
    """Speech2Text has convolutions of stride 2, each with a gated linear unit that halves its channels."""
    hidden, depth, kernels = c.size("d_model"), c.size("encoder_layers"), c.entries("conv_kernel_sizes") or []
    listed = c.nested("conv_kernel_sizes", {str(place): kernel for place, kernel in enumerate(kernels)})
    channels, inputs = c.size("conv_channels"), c.size("input_feat_per_channel") * c.size("input_channels")
    front: Front = ()
    for place in range(len(kernels)):
        left = len(kernels) - 1 - place
        outputs = channels if left else 2 * hidden
        front += convolution(f"conv.{place}", inputs, outputs, listed.size(str(place)), uses=2**left)
        inputs = outputs // 2
    c.ignore("num_conv_layers max_source_positions max_target_positions")
    c.put("num_hidden_layers", c.size("decoder_layers"))
    positions = SinusoidalPositions(halves=True, to_end=True, offset=2)
    return listener(
        c,
        _pre_norm_layer(c, "encoder", key_bias=True),
        depth,
        _pre_norm_layer(c, "decoder", key_bias=True),
        encoder_positions=positions,
        front=front,
        norm=norm(c, "layernorm"),
        positions=positions,
        embedding=Embedding(scale=hidden**0.5 if c.flag("scale_embedding", True) else 1.0),
    )


@family("moonshine")
def moonshine(c: Config) -> ModelSpec:
    """Moonshine reads the samples of the sound through three convolutions of strides 64, 3 and 2.

    It has RoPE on 90% of each head. The decoder has gated feed-forwards. The norms have no biases. The class in
    transformers gives the decoder the numbers of heads of the encoder, whatever the config says.
    """
    hidden, width, bias = c.size("hidden_size"), c.size("intermediate_size"), c.flag("attention_bias")
    heads = c.size("encoder_num_attention_heads")
    kv_heads = c.size("encoder_num_key_value_heads", heads)
    if hidden % heads:
        raise c.error("encoder_num_attention_heads", f"{heads} does not divide hidden_size {hidden}")
    c.require("decoder_num_attention_heads", heads)
    c.require("decoder_num_key_value_heads", kv_heads)

    def attends(*, causal: bool) -> Attention:
        return Attention(
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=hidden // heads,
            qkv_bias=bias,
            causal=causal,
        )

    reading = block(attends(causal=False), dense(c, bias=True, width=width, keys=("encoder_hidden_act",)))
    gated = Gated(intermediate_size=width, activation=activation(c, "decoder_hidden_act"), bias=True)
    front = convolution("conv1", 1, hidden, 127, uses=6, bias=False)
    front += convolution("conv2", hidden, 2 * hidden, 7, uses=2) + convolution("conv3", 2 * hidden, hidden, 3)
    front += (ExtraWeight(name="groupnorm", shape=(2, hidden), role="vector"),)
    c.ignore("pad_head_dim_to_multiple_of")
    positions = rope(c, head_dim=hidden // heads, interleaved=True, partial=0.9)
    return listener(
        c,
        reading,
        c.size("encoder_num_hidden_layers"),
        block(attends(causal=True), gated, cross_attention=attends(causal=False)),
        encoder_positions=positions,
        front=front,
        norm=norm(c, "layernorm", bias=False),
        positions=positions,
    )
