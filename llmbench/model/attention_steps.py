"""Steps of attention that only some model families have. A layer selects its steps when it is built.

A HeadStep changes queries, keys and values. A step before the rotation gets tensors [B, S, heads, H]. A step after the
rotation gets tensors [B, heads, S, H]. A PositionScores function adds a position bias to the scores. The first argument
of every step is the attention layer, because the layer owns the weights. `StepLayer` lists what the steps read of it.

Dimensions: B batch, S query length, T key length, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, assert_never

import torch
from torch import Tensor, nn

from llmbench.model.implementations.interface import Implementation, Mask, Scores
from llmbench.model.norms import NormLayer
from llmbench.model.positions import alibi_slopes, relative_buckets
from llmbench.model.step import Step
from llmbench.spec.mixer import Attention
from llmbench.spec.model import ModelSpec, Norm
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    Positions,
    RelativeBias,
    Rope,
    SinusoidalPositions,
)


class StepLayer(Protocol):
    """What the steps read of an attention layer.

    - scale: the factor of the scores. relative_bias: T5's table [buckets, N], in the layer that owns it.
    - q_norm, k_norm: the norms of the queries and of the keys, if the layer has them.
    """

    spec: ModelSpec
    mixer: Attention
    position_kind: Positions
    scale: float
    q_norm: NormLayer | None
    k_norm: NormLayer | None
    relative_bias: nn.Parameter | None


QKV = tuple[Tensor, Tensor, Tensor]
HeadStep = Callable[[StepLayer, Tensor, Tensor, Tensor, Step], QKV]
PositionScores = Callable[[StepLayer, Scores, Mask, Tensor | None], tuple[Scores, Tensor | None]]
"""A function that adds the position bias to the scores. Its arguments are a layer, the scores, the mask, and the bias
that an earlier layer computed (or None). It returns the new scores, and the bias that later layers read."""


def steps_before_rotation(mixer: Attention) -> tuple[HeadStep, ...]:
    """Return the steps that run between the projections and the rotation, in order."""
    steps: list[HeadStep] = []
    if mixer.value_norm:
        steps.append(normalise_values)
    if mixer.value_scale is not None:
        steps.append(scale_values)
    if mixer.qk_norm is not None and not mixer.qk_norm.after_rope:
        steps.append(normalise_heads)
    if mixer.clip_qkv is not None:
        steps.append(clip)
    return tuple(steps)


def steps_after_rotation(mixer: Attention) -> tuple[HeadStep, ...]:
    """Return the steps that run between the rotation and the scores, in order."""
    steps: list[HeadStep] = []
    if mixer.qk_norm is not None and mixer.qk_norm.after_rope:
        steps.append(normalise_rotated_heads)
    if mixer.temperature is not None:
        steps.append(scale_queries)
    return tuple(steps)


def normalise_values(layer: StepLayer, q: Tensor, k: Tensor, v: Tensor, step: Step) -> QKV:
    """Divide each value vector by its root mean square: v / rms(v). The norm has no weight (Gemma-4)."""
    norm = Norm(weight=False, eps=layer.spec.norm.eps)
    return q, k, step.implementation.norm(v, None, None, None, norm)[0]


def scale_values(layer: StepLayer, q: Tensor, k: Tensor, v: Tensor, step: Step) -> QKV:
    """Multiply the values by the constant `value_scale` (MiMo)."""
    assert layer.mixer.value_scale is not None
    return q, k, v * layer.mixer.value_scale


def normalise_heads(layer: StepLayer, q: Tensor, k: Tensor, v: Tensor, step: Step) -> QKV:
    """Apply the norms of queries and keys before the rotation (Qwen3, OLMo-2, Command-R+)."""
    return _normed(q, layer.q_norm, step.implementation), _normed(k, layer.k_norm, step.implementation), v


def normalise_rotated_heads(layer: StepLayer, q: Tensor, k: Tensor, v: Tensor, step: Step) -> QKV:
    """Apply the norms of queries and keys after the rotation (Llama-4)."""
    q = _normed(q.transpose(1, 2), layer.q_norm, step.implementation).transpose(1, 2)
    k = _normed(k.transpose(1, 2), layer.k_norm, step.implementation).transpose(1, 2)
    return q, k, v


def clip(layer: StepLayer, q: Tensor, k: Tensor, v: Tensor, step: Step) -> QKV:
    """Clip queries, keys and values to the range from -clip_qkv to clip_qkv (OLMo, DBRX)."""
    bound = layer.mixer.clip_qkv
    assert bound is not None
    return q.clamp(-bound, bound), k.clamp(-bound, bound), v.clamp(-bound, bound)


def scale_queries(layer: StepLayer, q: Tensor, k: Tensor, v: Tensor, step: Step) -> QKV:
    """Multiply each query by a factor that grows with its position p (Llama-4, arXiv 2501.19399).

    The factor is 1 + scale · ln(1 + ⌊(p + offset) / every⌋). The spec gives `scale`, `offset` and `every`.
    """
    temperature = layer.mixer.temperature
    assert temperature is not None
    intervals = torch.floor((step.positions.float() + temperature.offset) / temperature.every)
    factor = (1.0 + temperature.scale * torch.log1p(intervals))[:, None, :, None]  # [B, 1, S, 1]
    return q * factor.to(q.dtype), k, v


def head_norms(mixer: Attention, model_norm: Norm) -> tuple[NormLayer | None, NormLayer | None]:
    """Create the norm of the queries and the norm of the keys. Both are None for a layer without such norms."""
    norm = mixer.qk_norm
    if norm is None:
        return None, None
    kind = Norm(
        kind=norm.norm_kind,
        weight=norm.weight,
        bias=norm.bias,
        eps=model_norm.eps if norm.eps is None else norm.eps,
        unit_offset=model_norm.unit_offset,
    )

    def over(heads: int) -> NormLayer:
        match norm.over:
            case "full":
                return NormLayer(heads * mixer.head_dim, kind)
            case "per_head":
                return NormLayer(mixer.head_dim, kind, weight_shape=(heads, mixer.head_dim))
            case "head":
                return NormLayer(mixer.head_dim, kind)
            case _:
                assert_never(norm.over)

    return over(mixer.num_attention_heads), over(mixer.num_key_value_heads)


def _normed(x: Tensor, norm: NormLayer | None, implementation: Implementation) -> Tensor:
    """Apply a norm to x [B, S, N, H]: to each head, or to all heads of a token together."""
    assert norm is not None
    normed: Tensor
    if norm.width == x.shape[-1]:
        normed = norm(x, implementation)
    else:
        normed = norm(x.flatten(2), implementation).unflatten(-1, x.shape[2:])
    return normed


def position_scores(positions: Positions) -> PositionScores:
    """Return the function that adds the bias of this position encoding to the scores."""
    match positions:
        case Alibi():
            return rounded_alibi if positions.rounded else alibi
        case RelativeBias():
            return relative_bias
        case Rope() | LearnedPositions() | SinusoidalPositions() | NoPositions():
            return unchanged
        case _:
            assert_never(positions)


def unchanged(layer: StepLayer, scores: Scores, mask: Mask, shared: Tensor | None) -> tuple[Scores, Tensor | None]:
    """Return the scores unchanged, for models without a position bias.

    Rotary positions rotate queries and keys instead. Learned and sinusoidal positions change the embedding.
    """
    return scores, shared


def alibi(layer: StepLayer, scores: Scores, mask: Mask, shared: Tensor | None) -> tuple[Scores, Tensor | None]:
    """Add the ALiBi bias slope · (t − s) for a key at position t and a query at position s (BLOOM, MPT)."""
    slopes = alibi_slopes(layer.mixer.num_attention_heads, mask.keys.device)
    return scores._replace(slopes=slopes * _alibi_factor(layer)), shared


def rounded_alibi(layer: StepLayer, scores: Scores, mask: Mask, shared: Tensor | None) -> tuple[Scores, Tensor | None]:
    """Add Falcon's ALiBi bias slope · t for a key at position t. Falcon computes this product in bf16."""
    slopes = alibi_slopes(layer.mixer.num_attention_heads, mask.keys.device)
    bias = (slopes[None, :, None, None].bfloat16() * mask.keys[:, None, None, :]).float() * _alibi_factor(layer)
    return scores._replace(bias=bias.expand(-1, -1, mask.queries.shape[1], -1)), shared


def _alibi_factor(layer: StepLayer) -> float:
    """Return the factor of the ALiBi bias. In Falcon, this is the scale of the scores. In all other models, it is 1."""
    assert isinstance(layer.position_kind, Alibi)
    return layer.scale if layer.position_kind.scaled else 1.0


def relative_bias(layer: StepLayer, scores: Scores, mask: Mask, shared: Tensor | None) -> tuple[Scores, Tensor | None]:
    """Add T5's bias [B, N, S, T], which depends on the distance between query and key.

    A layer with a bias table computes the bias. Every other layer adds `shared`, the bias that an earlier layer
    computed.
    """
    if layer.relative_bias is not None:
        kind = layer.position_kind
        assert isinstance(kind, RelativeBias)
        buckets = relative_buckets(kind, mask.queries, mask.keys, bidirectional=not layer.mixer.causal)
        shared = layer.relative_bias[buckets].permute(0, 3, 1, 2)
    return scores._replace(bias=shared), shared


def relative_bias_table(positions: Positions, mixer: Attention, *, first: bool) -> nn.Parameter | None:
    """Create T5's bias table [buckets, N]. None for other position encodings, and for layers without a table.

    - `first`: whether the layer is the first layer of its stack, which has the table that all layers share.
    """
    match positions:
        case RelativeBias():
            if not (first or positions.per_layer):
                return None
            return nn.Parameter(torch.empty(positions.num_buckets, mixer.num_attention_heads))
        case Rope() | LearnedPositions() | SinusoidalPositions() | Alibi() | NoPositions():
            return None
        case _:
            assert_never(positions)
