"""ModelSpec: the description of a model, from which every figure comes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Literal

import msgspec

from llmbench.spec.base import Count, Fault, Name, Part, Size
from llmbench.spec.check import check
from llmbench.spec.faults import not_negative, positive
from llmbench.spec.ffn import FFN
from llmbench.spec.mixer import Attention, AttentionKind, Mixer, SingleMixer, branches
from llmbench.spec.pattern import MAX_LAYERS, parse_pattern
from llmbench.spec.position import LearnedPositions, NoPositions, Positions

Placement = Literal["pre", "post", "output", "sandwich", "parallel", "parallel_two", "none"]
"""The places of a layer's norms.

pre: before mixer and feed-forward (GPT-2, LLaMA). post: after each residual sum (the original Transformer, BERT).
output: on each sublayer's output, before the residual sum (OLMo-2). sandwich: before and after (Gemma-2).
parallel: mixer and feed-forward run side by side after one norm (Falcon-7B, GPT-J). parallel_two: they run side by side
after a norm each (Falcon-40B, GPT-NeoX). none: no norm.
"""


class Norm(Part, frozen=True):
    """A norm over the hidden width. `unit_offset` multiplies by 1 + weight (Gemma)."""

    kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    weight: bool = True
    bias: bool = False
    eps: float = 1e-5
    unit_offset: bool = False

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "eps")


class ExtraWeight(Part, frozen=True):
    """A weight of a layer (or of the model) that no named part of a spec describes, counted by its shape.

    role: "matmul" is multiplied with every token (2 FLOPs per element); "vector" is elementwise or added; "table" is
    looked up; "buffer" is stored but not trained. Sizes are exact; the real model is not built.
    """

    name: Name
    shape: tuple[Size, ...]
    role: Literal["matmul", "vector", "table", "buffer"]
    component: Literal[
        "embedding",
        "position_embedding",
        "attention",
        "attention_norms",
        "attention_extra",
        "mixer_ssm",
        "mlp",
        "router",
        "norms",
        "other",
    ] = "other"

    def faults(self) -> Iterator[Fault]:
        if not self.shape:
            yield Fault("shape", "has no dimension")


class Layer(Part, frozen=True):
    """One kind of layer: a mixer, a feed-forward (either may be absent), and the norms around them.

    cross_attention: attention to an encoder's output, between mixer and feed-forward (T5). norm: this kind's norm,
    where it differs from the model's. residual_scale multiplies each sublayer's output (Granite); skip_scale multiplies
    the stream that it is added to (MiniMax, DeepNorm's α). residual_from_norm: with placement "pre", the output is
    added to the norm's output instead of its input (MiniMax). shared_weights: all layers of this kind use one set of
    weights (ALBERT, Zamba); the name distinguishes sets of one shape.
    """

    mixer: Mixer | None = None
    ffn: FFN | None = None
    placement: Placement = "pre"
    cross_attention: Attention | None = None
    norm: Norm | None = None
    residual_scale: float = 1.0
    skip_scale: float = 1.0
    residual_from_norm: bool = False
    shared_weights: Name | None = None
    extra: tuple[ExtraWeight, ...] = ()

    @property
    def num_norms(self) -> int:
        """The number of norms over the hidden width."""
        if self.placement == "none":
            return 0
        if self.placement == "parallel":
            return 1
        sublayers = sum(part is not None for part in (self.mixer, self.cross_attention, self.ffn))
        return 2 * sublayers if self.placement == "sandwich" else sublayers

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "residual_scale", "skip_scale")
        if self.residual_from_norm and self.placement != "pre":
            yield Fault("residual_from_norm", f'needs placement "pre", not "{self.placement}"')
        cross = self.cross_attention
        if cross is not None and cross.span is not None:
            yield Fault(
                "cross_attention", "sees the whole encoder", "leave out its sliding_window or attention_chunk_size"
            )


class Embedding(Part, frozen=True):
    """The embedding: what stands between a token's number and the first layer.

    size: width of the table where it is not hidden_size; a projection to hidden_size follows, and one back before the
    head (OPT-350m). positions_after: learned positions are added after that projection, so their table has hidden_size
    (OPT), instead of before it (ALBERT). projection_bias: that projection has a bias. token_types: rows of BERT's
    segment table. scale multiplies the embedding (Gemma).
    """

    size: Size | None = None
    positions_after: bool = False
    projection_bias: bool = False
    token_types: Count = 0
    norm: bool = False
    scale: float = 1.0

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "scale")
        if self.projection_bias and self.size is None:
            yield Fault("projection_bias", "there is no projection", "set size, the width it projects from")


class Head(Part, frozen=True):
    """The language-model head.

    transform: a dense layer with activation and norm before the vocabulary. "bert" counts the vocabulary's bias with
    the transform, "roberta" with the head, as their names do. transform_bias: that dense layer has a bias. scale
    multiplies the logits (Cohere, Granite); soft_cap bounds them (Gemma-2).
    """

    bias: bool = False
    transform: Literal["bert", "roberta"] | None = None
    transform_bias: bool = True
    soft_cap: float | None = None
    scale: float = 1.0

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "soft_cap", "scale")


class Stack(Part, frozen=True):
    """A sequence of layers: the encoder of an encoder-decoder. It uses the decoder's token table unless it has its own.

    positions: its own position encoding, or None if only its layers have one (T5, RoPE). embedding_norm: a norm on its
    embeddings (BART). vocab_size: rows of its own token table (T5Gemma). hidden_size: where it differs from the
    decoder's.
    """

    layers: dict[Name, Layer]
    pattern: str
    final_norm: bool = True
    positions: Positions | None = None
    embedding_norm: bool = False
    vocab_size: Size | None = None
    hidden_size: Size | None = None

    @property
    def order(self) -> tuple[str, ...]:
        """The name of each layer, first to last."""
        return _parsed(self.pattern)


class HyperConnections(Part, frozen=True):
    """Several residual streams instead of one (arXiv 2409.19606). Before each sublayer, a small matrix computes how the
    streams enter it and how its output is distributed. Another matrix, before the head, makes one stream of all.

    mixes: each sublayer also mixes the streams with each other, by a matrix of streams × streams (DeepSeek-V4).
    """

    streams: Size
    mixes: bool = True


class NextTokenPrediction(Part, frozen=True):
    """Multi-token-prediction modules (DeepSeek-V3). Each has two norms, a projection of two hidden states to one, a
    layer of kind `layer`, and a norm before the shared head. The usual parameter count leaves them out."""

    count: Size
    layer: Name

    def faults(self) -> Iterator[Fault]:
        if self.count > MAX_LAYERS:
            yield Fault("count", f"{self.count} is more than {MAX_LAYERS} layers")


class ModelSpec(Part, frozen=True):
    """A language model: hyper-parameters, exact enough to build it. `check` raises SpecError if fields contradict each
    other.

    approximate: why figures may be inexact (empty: they are exact); every output repeats the mark. undescribed: what
    the model computes differently from these fields although every size is exact; the real model is then neither built
    nor read. published_parameters: the source's count, for comparison only. family: the Hugging Face model_type, if
    any.
    """

    name: Name
    source: str
    layers: dict[Name, Layer]
    pattern: str
    vocab_size: Size
    hidden_size: Size
    tie_word_embeddings: bool
    aliases: tuple[str, ...] = ()
    family: str = ""
    published_parameters: Annotated[int, msgspec.Meta(ge=1, le=10**15)] | None = None
    max_position_embeddings: Size | None = None
    approximate: tuple[str, ...] = ()
    undescribed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    positions: Positions = NoPositions()
    norm: Norm = Norm()
    final_norm: bool = True
    embedding: Embedding = Embedding()
    head: Head = Head()
    encoder: Stack | None = None
    next_token_prediction: NextTokenPrediction | None = None
    hyper_connections: HyperConnections | None = None
    extra: tuple[ExtraWeight, ...] = ()

    @property
    def order(self) -> tuple[str, ...]:
        """The name of each layer, first to last."""
        return _parsed(self.pattern)

    @property
    def num_hidden_layers(self) -> int:
        """Layers of the decoder (or of the only stack)."""
        return len(self.order)

    @property
    def mixers(self) -> list[SingleMixer]:
        """The mixers of each kind of layer of the decoder (or of the only stack)."""
        return [mixer for layer in self.layers.values() for mixer in branches(layer.mixer)]

    @property
    def attentions(self) -> list[AttentionKind]:
        """Those of its `mixers` that attend."""
        return [mixer for mixer in self.mixers if isinstance(mixer, AttentionKind)]

    @property
    def is_moe(self) -> bool:
        """Whether any layer has experts."""
        layers = [*self.layers.values(), *(self.encoder.layers.values() if self.encoder else ())]
        return any(layer.ffn is not None and layer.ffn.experts_summary is not None for layer in layers)

    @property
    def decodes(self) -> bool:
        """Whether the model generates token by token: every mixer is causal (BERT's are not)."""
        return all(mixer.causal for mixer in self.mixers)

    @property
    def position_limit(self) -> int | None:
        """The most tokens that a learned table of positions has rows for; None: no limit."""
        learned = self.positions
        return learned.num_positions - learned.offset if isinstance(learned, LearnedPositions) else None

    def positions_of(self, mixer: AttentionKind) -> Positions:
        """The position encoding of a mixer: its own if it has one, otherwise the model's."""
        return self.positions if mixer.positions is None else mixer.positions

    def check(self) -> ModelSpec:
        """Check the fields against each other; returns self. Raises SpecError naming the field."""
        check(self)
        return self


@lru_cache(maxsize=4096)
def _parsed(pattern: str) -> tuple[str, ...]:
    return parse_pattern(pattern)
