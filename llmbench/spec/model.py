"""ModelSpec: the one description of a model that every figure comes from."""

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
"""Where a layer's norms stand.

pre: before mixer and feed-forward (GPT-2, LLaMA). post: after each residual sum (the original Transformer, BERT).
output: on each sublayer's output, before the residual sum (OLMo-2). sandwich: before and after (Gemma-2).
parallel: one norm feeds mixer and feed-forward side by side (Falcon-7B, GPT-J). parallel_two: one norm each, side by
side (Falcon-40B, GPT-NeoX). none: no norm.
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

    role: "matmul" is multiplied with every token (counts as 2 FLOPs an element); "vector" is elementwise or added;
    "table" is looked up; "buffer" is stored but not trained. Sizing is exact; the real model refuses to build it.
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

    cross_attention: between mixer and feed-forward, to an encoder's output (T5).
    norm: where this kind's norm differs from the model's. residual_scale multiplies each sublayer's output (Granite),
    skip_scale what it is added to (MiniMax, DeepNorm's α). residual_from_norm: with placement "pre", the output is
    added to what the norm gives, not to what it reads (MiniMax).
    shared_weights: all layers of this kind are one set of weights used again and again (ALBERT, Zamba); the name tells
    sets of one shape apart.
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
        """How many norms over the hidden width the layer has."""
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
    """What happens between a token's number and the first layer.

    size: width of the table where it is not hidden_size; a projection to hidden_size follows, and one back before
    the head (OPT-350m). positions_after: learned positions are added behind that projection, so their table has
    hidden_size (OPT), and not before it (ALBERT). projection_bias: that projection has a bias. token_types: rows of
    BERT's segment table. scale multiplies the embedding (Gemma).
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
    """The language-model head. transform: a dense layer with activation and norm before the vocabulary; "bert" keeps
    the vocabulary's bias with the transform, "roberta" with the head (they name, and so count, it there).
    transform_bias: whether that dense layer has a bias.

    scale multiplies the logits (Cohere, Granite); soft_cap bounds them (Gemma-2).
    """

    bias: bool = False
    transform: Literal["bert", "roberta"] | None = None
    transform_bias: bool = True
    soft_cap: float | None = None
    scale: float = 1.0

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "soft_cap", "scale")


class Stack(Part, frozen=True):
    """A sequence of layers: the encoder of an encoder-decoder. Its token table is the decoder's unless it has its own.

    positions: a learned table of its own, or None where it has none beside the layers' (T5, RoPE).
    embedding_norm: a norm on its embeddings (BART). vocab_size: rows of a token table of its own
    (T5Gemma). hidden_size: where it is not the decoder's.
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
    """Several residual streams in place of one (arXiv 2409.19606). Before each sublayer, a small matrix over all of
    them says how they enter it and how its output is shared out; another, before the head, how they become one.

    mixes: the streams are mixed with each other at each sublayer too, by a matrix of streams × streams (DeepSeek-V4).
    """

    streams: Size
    mixes: bool = True


class NextTokenPrediction(Part, frozen=True):
    """Multi-token-prediction modules (DeepSeek-V3): each a layer of kind `layer` behind a projection of two hidden
    states to one, two norms and a norm before the shared head. Outside the usual parameter count."""

    count: Size
    layer: Name

    def faults(self) -> Iterator[Fault]:
        if self.count > MAX_LAYERS:
            yield Fault("count", f"{self.count} is more than {MAX_LAYERS} layers")


class ModelSpec(Part, frozen=True):
    """A language model: hyper-parameters, exact enough to build it.

    Raises SpecError from `check` where fields contradict each other. `approximate` lists why figures may be inexact
    (empty: they are exact); every output repeats the mark. `undescribed` lists what the model computes otherwise than
    these fields say although every size is exact: the real model is then neither built nor read. `published_parameters`
    is what the source says, for comparison only. `family` is the Hugging Face model_type where there is one.
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
