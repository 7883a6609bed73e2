"""`ModelSpec`, the description of a model. llmbench computes all figures about a model from its ModelSpec."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import prod
from typing import Annotated, Literal, assert_never

import msgspec

from llmbench.spec.base import Count, Fault, Name, Part, Size, plural
from llmbench.spec.check import check
from llmbench.spec.faults import not_negative, positive
from llmbench.spec.ffn import FFN
from llmbench.spec.mixer import Attention, AttentionKind, Mixer, SingleMixer, branches
from llmbench.spec.pattern import MAX_LAYERS, parse_pattern
from llmbench.spec.position import NoPositions, Positions
from llmbench.spec.weights.stored import Weights

Placement = Literal["pre", "pre_ffn", "post", "output", "sandwich", "parallel", "parallel_two", "none"]
"""The placement of the norms in a layer. A sublayer is the mixer, the cross-attention or the feed-forward.

- pre: a norm stands before each sublayer (GPT-2, LLaMA).
- pre_ffn: a norm stands before the feed-forward only (the first layer of ModernBERT, because a norm follows the
  embedding).
- post: a norm stands after each residual sum (the original Transformer, BERT).
- output: a norm stands on the output of each sublayer, before the residual sum (OLMo-2).
- sandwich: a norm stands before each sublayer, and a second norm stands on the output of the sublayer (Gemma-2).
- parallel: the mixer and the feed-forward run in parallel after one common norm (Falcon-7B, GPT-J).
- parallel_two: the mixer and the feed-forward run in parallel, and each has its own norm before it (Falcon-40B,
  GPT-NeoX).
- none: the layer has no norm.
"""


class Norm(Part, frozen=True):
    """A norm over hidden_size channels.

    - kind: the type of the norm.
    - weight: whether the norm has a trained factor per channel.
    - bias: whether the norm has a trained bias per channel.
    - eps: the small number that is added to the variance.
    - unit_offset: whether the factor is 1 + weight instead of weight (Gemma).
    """

    kind: Literal["rmsnorm", "layernorm"] = "rmsnorm"
    weight: bool = True
    bias: bool = False
    eps: float = 1e-5
    unit_offset: bool = False

    @property
    def label(self) -> str:
        """The common name of the type: `RMSNorm`."""
        match self.kind:
            case "rmsnorm":
                return "RMSNorm"
            case "layernorm":
                return "LayerNorm"
            case _:
                assert_never(self.kind)

    @property
    def usual_bias(self) -> bool:
        """Whether a norm of this type usually has a bias. RMSNorm has none (arXiv 1910.07467). LayerNorm has one."""
        match self.kind:
            case "rmsnorm":
                return False
            case "layernorm":
                return True
            case _:
                assert_never(self.kind)

    @property
    def stepwise(self) -> bool:
        """Whether plain PyTorch computes the norm in several steps on a CPU, and with a unit offset."""
        match self.kind:
            case "rmsnorm":
                return True
            case "layernorm":
                return False
            case _:
                assert_never(self.kind)

    @property
    def statistics(self) -> int:
        """The number of fp32 values per row that the norm saves for its backward pass."""
        match self.kind:
            case "rmsnorm":
                return 1
            case "layernorm":
                return 2
            case _:
                assert_never(self.kind)

    def faults(self) -> Iterator[Fault]:
        yield from not_negative(self, "eps")


class ExtraWeight(Part, frozen=True):
    """A weight of a layer or of the model that no other field of the spec describes.

    The parameter count includes the weight, so the count stays exact. llmbench cannot build a PyTorch model with an
    extra weight, unless the weight is unused.

    - name: name of the weight.
    - shape: dimensions of the weight.
    - role: how the model uses the weight. "matmul": each token is multiplied with the matrix (2 FLOPs per element).
      "convolution": outputs, inputs and kernel of a convolution over time (2 FLOPs per element and step). "vector":
      each element is a factor or a summand. "table": each token looks up one row. "buffer": the weight is stored but
      not trained. "unused": the logits do not depend on the weight (the cross-attention of BART's decoder without its
      encoder).
    - component: the row of the parameter table that includes the weight.
    - uses: number of steps that a convolution computes per token (Whisper's first convolution: 2).
    """

    name: Name
    shape: tuple[Size, ...]
    role: Literal["matmul", "convolution", "vector", "table", "buffer", "unused"]
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
    uses: Size = 1

    def faults(self) -> Iterator[Fault]:
        if not self.shape:
            yield Fault("shape", "has no dimensions, but a weight needs at least one")
        if prod(self.shape) >= 2**63:
            yield Fault("shape", "has 2^63 elements or more")
        if self.role == "convolution" and len(self.shape) != 3:
            yield Fault("shape", f"has {plural(len(self.shape), 'dimension')}, but a convolution over time has 3")
        if self.uses > 1 and self.role != "convolution":
            yield Fault("uses", f'needs role "convolution", but role is "{self.role}"')


class Layer(Part, frozen=True):
    """One kind of layer: a mixer, a feed-forward and their norms. The mixer or the feed-forward may be absent.

    - mixer: the sublayer that combines the vectors of different tokens.
    - ffn: the feed-forward.
    - placement: the placement of the norms.
    - cross_attention: attention to the output of the encoder. It stands between the mixer and the feed-forward (T5).
    - norm: the norm of this kind of layer, if it differs from the norm of the model.
    - residual_scale: factor on the output of each sublayer (Granite).
    - skip_scale: factor on the residual stream before the output of a sublayer is added (MiniMax, DeepNorm's α). 0: the
      layer has no residual connections.
    - residual_from_norm: whether the output of a sublayer is added to the normalised input of the sublayer instead of
      the residual stream (MiniMax). It requires placement "pre".
    - output_scale: whether a stored number multiplies the output of the layer (Gemma 4).
    - shared_weights: name of a set of weights that all layers of this kind share (ALBERT, Zamba). Two kinds of layers
      with equal shapes need different names, because they have different weights.
    - extra: weights that no other field describes.
    """

    mixer: Mixer | None = None
    ffn: FFN | None = None
    placement: Placement = "pre"
    cross_attention: Attention | None = None
    norm: Norm | None = None
    residual_scale: float = 1.0
    skip_scale: float = 1.0
    residual_from_norm: bool = False
    output_scale: bool = False
    shared_weights: Name | None = None
    extra: tuple[ExtraWeight, ...] = ()

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "residual_scale")
        yield from not_negative(self, "skip_scale")
        if self.skip_scale != 1.0 and self.placement in ("parallel", "parallel_two"):
            yield Fault("skip_scale", f'is not supported with placement "{self.placement}"', "set skip_scale to 1")
        if self.residual_from_norm and self.placement != "pre":
            yield Fault("residual_from_norm", f'needs placement "pre", but placement is "{self.placement}"')
        cross = self.cross_attention
        if cross is not None and cross.span is not None:
            yield Fault(
                "cross_attention",
                "must see the whole encoder output",
                "leave out sliding_window and attention_chunk_size of the cross-attention",
            )


class PerLayerEmbedding(Part, frozen=True):
    """Per-layer embeddings (Gemma 3n, Gemma 4). Each layer adds its own small embedding of the token to the residual
    stream.

    A table has `size` elements per token and layer. A projection of the embedding is normalised and added to them. In
    each layer, a gate of the residual stream multiplies the result, and a projection and a norm follow.

    - size: width of a per-layer embedding.
    - vocab_size: number of rows of the table.
    """

    size: Size
    vocab_size: Size


class Embedding(Part, frozen=True):
    """The embedding, which computes the input of the first layer from the token ids.

    - size: width of the token table, if it differs from hidden_size. A projection to hidden_size then follows the
      table. A projection back to this width precedes the head (OPT-350m).
    - positions_after: whether learned positions are added after the norm and the projection to hidden_size. The
      position table then has hidden_size columns (OPT). If false, learned positions are added before both (ALBERT).
    - projection_bias: whether the projection to hidden_size has a bias.
    - token_types: number of rows in BERT's table of segments.
    - norm: whether a norm follows the embedding.
    - scale: factor on the embedding (Gemma).
    - per_layer: the per-layer embeddings.
    """

    size: Size | None = None
    positions_after: bool = False
    projection_bias: bool = False
    token_types: Count = 0
    norm: bool = False
    scale: float = 1.0
    per_layer: PerLayerEmbedding | None = None

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "scale")
        if self.projection_bias and self.size is None:
            yield Fault(
                "projection_bias", "needs a projection, but size is absent", "set size, the width of the token table"
            )


class Head(Part, frozen=True):
    """The language-model head, which computes the logits.

    - bias: whether the logits have a trained bias.
    - fixed_bias: whether the logits have a bias that is stored but not trained (BART).
    - transform: layers before the projection to the vocabulary: a linear layer, an activation and a norm. None: there
      are no such layers. "bert" and "roberta" have the same layers. In "bert", the parameter table counts the bias of
      the logits with the transform. In "roberta", it counts this bias with the head.
    - transform_bias: whether the linear layer of the transform has a bias.
    - size: output width of the transform, if it differs from the width of the token table (RemBERT).
    - soft_cap: soft limit of the logits, applied with tanh (Gemma-2).
    - scale: factor on the logits (Cohere, Granite).
    """

    bias: bool = False
    fixed_bias: bool = False
    transform: Literal["bert", "roberta"] | None = None
    transform_bias: bool = True
    size: Size | None = None
    soft_cap: float | None = None
    scale: float = 1.0

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "soft_cap", "scale")
        if self.size is not None and self.transform is None:
            yield Fault("size", "needs a transform, but transform is absent", "leave out size")


class Stack(Part, frozen=True):
    """The encoder of an encoder-decoder model.

    - layers: the kinds of layers, by name.
    - pattern: the order of the layers.
    - final_norm: whether a norm follows the last layer.
    - positions: the position encoding of the encoder. None: the encoder has no position encoding outside its mixers.
    - embedding_norm: whether a norm follows the embedding of the encoder (BART).
    - embedding_scale: factor on the embedding of the encoder, if it differs from that of the decoder (T5Gemma).
    - vocab_size: number of rows of the encoder's own token table (T5Gemma). None: the encoder uses the decoder's table.
    - hidden_size: width of the encoder, if it differs from the width of the decoder.
    - length: number of positions of every input (Whisper: 1,500 for 30 seconds of sound). None: the input has any
      length.
    - extra: weights outside the layers that no other field describes.
    """

    layers: dict[Name, Layer]
    pattern: str
    final_norm: bool = True
    positions: Positions | None = None
    embedding_norm: bool = False
    embedding_scale: float | None = None
    vocab_size: Size | None = None
    hidden_size: Size | None = None
    length: Size | None = None
    extra: tuple[ExtraWeight, ...] = ()

    @property
    def order(self) -> tuple[str, ...]:
        """The name of each layer, from first to last."""
        return _parsed(self.pattern)

    def faults(self) -> Iterator[Fault]:
        yield from positive(self, "embedding_scale")


class HyperConnections(Part, frozen=True):
    """Hyper-connections: several residual streams instead of one (arXiv 2409.19606).

    At each sublayer, a small matrix computes two sets of weights. The first set combines the streams to the input of
    the sublayer. The second set adds the output of the sublayer to each stream. Before the head, another matrix
    combines all streams into one.

    - streams: number of residual streams.
    - mixes: whether each sublayer also mixes the streams with a matrix of streams × streams elements (DeepSeek-V4).
    - learned_head: whether a matrix combines the streams before the head. If false, their mean is used (GLM-5.3-Flash).
    """

    streams: Size
    mixes: bool = True
    learned_head: bool = True


class Tower(Part, frozen=True):
    """A part of a multimodal model for another modality than text, or its projector. It is only in the bytes of
    weights. All other figures are those of the text part.

    - name: name of the part, as the files have it: `vision_tower`.
    - parameters: number of the elements that the part stores: parameters and buffers. None: the number is not known,
      and the bytes of weights lack the part.
    - doubts: why the bytes of weights may be inexact.
    """

    name: Name
    parameters: Annotated[int, msgspec.Meta(ge=1, le=10**12)] | None = None
    doubts: tuple[str, ...] = ()


class NextTokenPrediction(Part, frozen=True):
    """Multi-token-prediction modules (DeepSeek-V3). Published parameter counts do not include them.

    Each module has two norms, a projection of two hidden states to one, a layer, and a norm before the shared head.

    - count: number of modules.
    - layer: name of the kind of layer that each module contains.
    - files: what the published files have of each module. "all": its weights, and copies of the embedding and of the
      head (DeepSeek-V3). "own": only its own weights (Qwen3-Next). "none": nothing (MiniMax-M2).
    """

    count: Size
    layer: Name
    files: Literal["all", "own", "none"] = "all"

    def faults(self) -> Iterator[Fault]:
        if self.count > MAX_LAYERS:
            yield Fault("count", f"{self.count} is more than {MAX_LAYERS}, the largest number of layers")


class ModelSpec(Part, frozen=True):
    """The hyper-parameters of a language model. They are complete enough to build the model.

    - name: name of the model.
    - layers: the kinds of layers, by name.
    - pattern: the order of the layers.
    - vocab_size: number of rows of the token table.
    - hidden_size: width of the residual stream.
    - tie_word_embeddings: whether the head uses the matrix of the token table.
    - source: paper or web page from which the hyper-parameters were taken. A bundled spec has one.
    - aliases: other names of the model.
    - family: the Hugging Face model_type, if the model has one.
    - published_parameters: parameter count that the source states. It is only compared with the computed count.
    - max_position_embeddings: longest sequence of the training, in tokens.
    - approximate: reasons why figures may be inexact. Empty: all figures are exact. Every output marks the figures of
      an approximate model.
    - undescribed: computations of the model that a spec cannot describe. All shapes are exact, but llmbench neither
      builds the PyTorch model nor reads its weights.
    - notes: remarks that are shown below the figures.
    - positions: the position encoding of the model.
    - norm: the norm of the model.
    - final_norm: whether a norm stands before the head.
    - embedding: the computation of the first layer's input.
    - head: the computation of the logits.
    - encoder: the encoder of an encoder-decoder model.
    - next_token_prediction: the multi-token-prediction modules.
    - hyper_connections: the additional residual streams.
    - extra: weights outside the layers that no other field describes.
    - weights: how the published files store the weights.
    - towers: parts for other modalities than text.
    """

    name: Name
    layers: dict[Name, Layer]
    pattern: str
    vocab_size: Size
    hidden_size: Size
    tie_word_embeddings: bool
    source: str = ""
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
    weights: Weights = Weights()
    towers: tuple[Tower, ...] = ()

    @property
    def order(self) -> tuple[str, ...]:
        """The name of each layer, from first to last."""
        return _parsed(self.pattern)

    @property
    def num_hidden_layers(self) -> int:
        """The number of layers of the decoder. In an encoder-only model, the number of layers of the model."""
        return len(self.order)

    @property
    def mixers(self) -> list[SingleMixer]:
        """The mixers of all kinds of layers, without those of a separate encoder."""
        return [mixer for layer in self.layers.values() for mixer in branches(layer.mixer)]

    @property
    def attentions(self) -> list[AttentionKind]:
        """All mixers in `mixers` that are attention."""
        return [mixer for mixer in self.mixers if isinstance(mixer, AttentionKind)]

    @property
    def is_moe(self) -> bool:
        """Whether at least one layer has experts."""
        layers = [*self.layers.values(), *(self.encoder.layers.values() if self.encoder else ())]
        return any(layer.ffn is not None and layer.ffn.experts_summary is not None for layer in layers)

    @property
    def decodes(self) -> bool:
        """Whether the model can generate token by token. This requires that all mixers are causal. BERT's mixers are
        not."""
        return all(mixer.causal for mixer in self.mixers)

    @property
    def position_limit(self) -> int | None:
        """The longest sequence in tokens for which the position encoding has positions. None: the length is not
        limited."""
        return self.positions.position_limit

    def positions_of(self, mixer: AttentionKind) -> Positions:
        """Return the position encoding that a mixer uses: its own encoding, or the model's encoding if the mixer has
        none."""
        return self.positions if mixer.positions is None else mixer.positions

    def check(self) -> ModelSpec:
        """Check all fields and return the spec unchanged.

        Raises SpecError if a value is impossible or if two fields contradict each other.
        """
        check(self)
        return self


@lru_cache(maxsize=4096)
def _parsed(pattern: str) -> tuple[str, ...]:
    return parse_pattern(pattern)
