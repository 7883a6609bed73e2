"""ModelSpec: the description of a model, from which llmbench computes all figures."""

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
"""The places of a layer's norms. A sublayer is the mixer, the cross-attention or the feed-forward.

- pre: a norm stands before each sublayer (GPT-2, LLaMA).
- post: a norm stands after each residual sum (the original Transformer, BERT).
- output: a norm stands on the output of each sublayer, before the residual sum (OLMo-2).
- sandwich: a norm stands before each sublayer, and another one on its output (Gemma-2).
- parallel: mixer and feed-forward run in parallel after one common norm (Falcon-7B, GPT-J).
- parallel_two: mixer and feed-forward run in parallel, each after its own norm (Falcon-40B, GPT-NeoX).
- none: the layer has no norm.
"""


class Norm(Part, frozen=True):
    """A norm over the hidden width.

    - weight: the norm has a trained factor per channel.
    - unit_offset: the factor is 1 + weight instead of weight (Gemma).
    """

    kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    weight: bool = True
    bias: bool = False
    eps: float = 1e-5
    unit_offset: bool = False

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "eps")


class ExtraWeight(Part, frozen=True):
    """A weight of a layer or of the model that no other field of a spec describes. It is counted by its shape.

    With an extra weight the parameter count stays exact, but the PyTorch model cannot be built.

    - role: the use of the weight. "matmul" is a matrix that every token is multiplied with (2 FLOPs per element),
      "vector" is a factor or summand per element, "table" is a table whose rows are looked up, and "buffer" is stored
      but not trained.
    - component: the line of the parameter table that counts the weight.
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
    """One kind of layer: a mixer, a feed-forward and their norms. The mixer or the feed-forward may be absent.

    - cross_attention: attention to the output of the encoder, between mixer and feed-forward (T5).
    - norm: the norm of this kind of layer, if it differs from the norm of the model.
    - residual_scale: factor on the output of each sublayer (Granite).
    - skip_scale: factor on the residual stream before the output of a sublayer is added (MiniMax, DeepNorm's α).
    - residual_from_norm: with placement "pre", the output of a sublayer is added to the output of its norm instead of
      the input of the norm (MiniMax).
    - shared_weights: all layers of this kind use one set of weights (ALBERT, Zamba). The value is a name for the set,
      because two sets can have the same shapes.
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
        """The number of norms over the hidden width in one layer."""
        if self.placement == "none":
            return 0
        if self.placement == "parallel":
            return 1
        sublayers = sum(part is not None for part in (self.mixer, self.cross_attention, self.ffn))
        return 2 * sublayers if self.placement == "sandwich" else sublayers

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "residual_scale", "skip_scale")
        if self.residual_from_norm and self.placement != "pre":
            yield Fault("residual_from_norm", f'needs placement "pre", but placement is "{self.placement}"')
        cross = self.cross_attention
        if cross is not None and cross.span is not None:
            yield Fault(
                "cross_attention", "must see the whole encoder", "leave out its sliding_window or attention_chunk_size"
            )


class Embedding(Part, frozen=True):
    """The embedding: the computation from the token id to the input of the first layer.

    - size: width of the token table, if it differs from hidden_size. A projection to hidden_size follows the table, and
      a projection back to this width precedes the head (OPT-350m).
    - positions_after: learned positions are added after the projection to hidden_size, so their table has that width
      (OPT). Otherwise they are added before the projection (ALBERT).
    - projection_bias: the projection to hidden_size has a bias.
    - token_types: number of rows in BERT's table of segments.
    - norm: a norm follows the embedding.
    - scale: factor on the embedding (Gemma).
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
            yield Fault(
                "projection_bias", "needs a projection, but size is absent", "set size, the width of the token table"
            )


class Head(Part, frozen=True):
    """The language-model head.

    - transform: a linear layer, an activation and a norm stand before the projection to the vocabulary. "bert" counts
      the bias of the vocabulary with the transform, "roberta" with the head, as their weight names do.
    - transform_bias: the linear layer of the transform has a bias.
    - scale: factor on the logits (Cohere, Granite).
    - soft_cap: bound of the logits (Gemma-2).
    """

    bias: bool = False
    transform: Literal["bert", "roberta"] | None = None
    transform_bias: bool = True
    soft_cap: float | None = None
    scale: float = 1.0

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "soft_cap", "scale")


class Stack(Part, frozen=True):
    """The encoder of an encoder-decoder model. Without its own token table it uses the table of the decoder.

    - positions: the position encoding of the encoder. None: the encoder has none, or only its mixers have one.
    - embedding_norm: a norm follows the embedding of the encoder (BART).
    - vocab_size: number of rows of the encoder's own token table (T5Gemma).
    - hidden_size: the width of the encoder, if it differs from the width of the decoder.
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
    """Several residual streams instead of one (arXiv 2409.19606).

    At each sublayer, a small matrix computes the weights with which the streams form its input, and with which its
    output is added to each stream. Before the head, another matrix combines all streams into one.

    - streams: number of residual streams.
    - mixes: each sublayer also mixes the streams with a matrix of streams × streams (DeepSeek-V4).
    """

    streams: Size
    mixes: bool = True


class NextTokenPrediction(Part, frozen=True):
    """Multi-token-prediction modules (DeepSeek-V3). The published parameter counts leave them out.

    Each module has two norms, a projection of two hidden states to one, a layer, and a norm before the shared head.

    - count: number of modules.
    - layer: kind of layer of each module.
    """

    count: Size
    layer: Name

    def faults(self) -> Iterator[Fault]:
        if self.count > MAX_LAYERS:
            yield Fault("count", f"{self.count} is more than {MAX_LAYERS} layers")


class ModelSpec(Part, frozen=True):
    """The hyper-parameters of a language model, complete enough to build it.

    - source: paper or page that the figures come from.
    - family: the Hugging Face model_type, if there is one.
    - published_parameters: parameter count that the source states, used only for comparison.
    - approximate: reasons why figures may be inexact. Empty: all figures are exact. Every output shows the mark.
    - undescribed: computations of the model that a spec cannot describe. All shapes are exact, but the PyTorch model is
      not built, and its weights are not read.
    - notes: remarks that are shown below the figures.
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
        """Number of layers of the decoder, or of a model without decoder."""
        return len(self.order)

    @property
    def mixers(self) -> list[SingleMixer]:
        """The mixers of all kinds of layers of the decoder, or of a model without decoder."""
        return [mixer for layer in self.layers.values() for mixer in branches(layer.mixer)]

    @property
    def attentions(self) -> list[AttentionKind]:
        """The `mixers` that are attention."""
        return [mixer for mixer in self.mixers if isinstance(mixer, AttentionKind)]

    @property
    def is_moe(self) -> bool:
        """Whether any layer has experts."""
        layers = [*self.layers.values(), *(self.encoder.layers.values() if self.encoder else ())]
        return any(layer.ffn is not None and layer.ffn.experts_summary is not None for layer in layers)

    @property
    def decodes(self) -> bool:
        """Whether the model can generate token by token: all mixers are causal (BERT's are not)."""
        return all(mixer.causal for mixer in self.mixers)

    @property
    def position_limit(self) -> int | None:
        """The most tokens for which a learned table of positions has rows. None: there is no such table and no
        limit."""
        learned = self.positions
        return learned.num_positions - learned.offset if isinstance(learned, LearnedPositions) else None

    def positions_of(self, mixer: AttentionKind) -> Positions:
        """Return the position encoding of a mixer: its own encoding, or the model's if it has none."""
        return self.positions if mixer.positions is None else mixer.positions

    def check(self) -> ModelSpec:
        """Check all fields and return self. Raises SpecError for an impossible value or a contradiction between
        fields."""
        check(self)
        return self


@lru_cache(maxsize=4096)
def _parsed(pattern: str) -> tuple[str, ...]:
    return parse_pattern(pattern)
