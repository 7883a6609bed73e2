"""Attention layers that only one family has, and the choice of the class of an attention layer.

Dimensions: B batch, S query length, T key length, D hidden size, N query heads, K KV heads, H head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from llmbench.errors import UnsupportedError
from llmbench.model.attention import AttentionLayer
from llmbench.model.attention_experts import ExpertAttention
from llmbench.model.gated_attention import gated_class
from llmbench.model.implementations.interface import Given, Implementation, Scores, Seen
from llmbench.model.layer_cache import LayerCache
from llmbench.model.norms import NormLayer, times
from llmbench.model.positions import rotate
from llmbench.model.step import Step
from llmbench.spec.mixer import Attention
from llmbench.spec.model import ModelSpec, Norm
from llmbench.spec.position import Positions


class NormedOutputAttention(AttentionLayer):
    """Attention with a norm over all heads before the output projection (BitNet)."""

    def __init__(self, spec: ModelSpec, mixer: Attention, **where: Any) -> None:
        super().__init__(spec, mixer, **where)
        self.o_norm = NormLayer(mixer.num_attention_heads * mixer.value_dim, spec.norm)

    def forward(
        self, x: Tensor, step: Step, cache: LayerCache | None, shared: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output [B, S, D] for x [B, S, D], and `shared`, which later layers read."""
        out, shared = self.attend(self.queries(x), *self.keys_values(x), step, cache, shared)
        return self.o_proj(self.o_norm(out.flatten(2), step.implementation)), shared


class DifferentialAttention(AttentionLayer):
    """Differential attention: the difference of two softmaxes weighs the values (DiffLlama, arXiv 2410.05258).

    Head i of the first half and head i of the second half form a pair. Both weigh the same values, which have 2·H
    channels: those of KV head j of the first half and of the second half.
    """

    def __init__(self, spec: ModelSpec, mixer: Attention, *, index: int, **where: Any) -> None:
        super().__init__(spec, mixer, index=index, **where)
        self.start = 0.8 - 0.6 * math.exp(-0.3 * index)
        self.difference = Difference(mixer.head_dim, self.start)
        self.pair_norm = NormLayer(2 * mixer.head_dim, Norm(weight=False, eps=spec.norm.eps))

    def weighted_values(self, q: Tensor, seen: Seen, scores: Scores, implementation: Implementation) -> Tensor:
        """Return the output [B, N/2, S, 2·H] of the pairs of heads for queries q [B, N, S, H]."""
        values = torch.cat(seen.v.chunk(2, dim=1), dim=-1).repeat(1, 2, 1, 1)  # [B, K, T, 2·H]
        out = implementation.attend(q, Given(seen.k, values, seen.mask), scores)
        return times(self.pair_norm(self.difference(out), implementation), 1 - self.start)


class Difference(nn.Module):
    """The difference first − λ · second of the two heads of each pair.

    λ = exp(q1 · k1) − exp(q2 · k2) + start, with four trained vectors of H elements.
    """

    def __init__(self, head_dim: int, start: float) -> None:
        super().__init__()
        self.start = start
        self.q1, self.k1, self.q2, self.k2 = (nn.Parameter(torch.empty(head_dim)) for _ in range(4))

    def forward(self, out: Tensor) -> Tensor:
        """Return [B, N/2, S, 2·H] for the outputs [B, N, S, 2·H] of all heads."""
        first, second = out.chunk(2, dim=1)
        added, subtracted = (
            torch.exp((q * k).sum(dtype=torch.float32)).to(out.dtype)
            for q, k in ((self.q1, self.k1), (self.q2, self.k2))
        )
        difference: Tensor = first - (added - subtracted + self.start) * second
        return difference


class StoringAttention(AttentionLayer):
    """Attention whose keys and values later layers read (Gemma 4).

    `shared` is then a dictionary with the keys and values of the last layer with each window, by the size of the
    window.
    """

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, step: Step, cache: LayerCache | None, shared: Any
    ) -> tuple[Tensor, Any]:
        """Compute attention like AttentionLayer, and add the keys and values to `shared`."""
        q, seen = self.seen(q, k, v, step, cache)
        out, _ = self.weigh(q, seen, step, None)
        return out, {**(shared or {}), self.mixer.sliding_window: seen}


class ReadingAttention(AttentionLayer):
    """Attention that reads the keys and values of the last earlier layer with the same window (Gemma 4).

    The layer has no projections of keys and values, and no cache.
    """

    def __init__(self, spec: ModelSpec, mixer: Attention, *, positions: Positions, index: int, where: str) -> None:
        super().__init__(spec, mixer, positions=positions, index=index, where=where)
        sources = [layer.mixer for name in spec.order[:index] if (layer := spec.layers[name])]
        if mixer.qk_norm is not None and (mixer.qk_norm.after_rope or mixer.qk_norm.over != "head"):
            raise UnsupportedError(f"{spec.name}: {where}.qk_norm with shares_kv: only a norm per head is supported")
        if positions.acts_on == "scores" or mixer.clip_qkv is not None or mixer.temperature is not None:
            raise UnsupportedError(
                f"{spec.name}: {where}.shares_kv with {positions.kind} positions, clip_qkv or temperature is not "
                "implemented in the PyTorch model yet"
            )
        if not any(_gives_keys(source, mixer) for source in sources):
            raise UnsupportedError(
                f"{spec.name}: {where}.shares_kv: no earlier layer has keys and values of this shape and window"
            )
        self.k_norm = None

    def add_projections(self, hidden: int) -> None:
        mixer = self.mixer
        heads = mixer.num_attention_heads
        self.q_proj = nn.Linear(hidden, heads * mixer.head_dim, bias=mixer.qkv_bias)
        self.o_proj = nn.Linear(heads * mixer.value_dim, hidden, bias=mixer.output_bias)

    def forward(self, x: Tensor, step: Step, cache: LayerCache | None, shared: Any) -> tuple[Tensor, Any]:
        """Return the output [B, S, D] for x [B, S, D], and `shared`, which later layers read."""
        q = self.queries(x)
        if self.q_norm is not None:
            q = self.q_norm(q, step.implementation)
        q = q.transpose(1, 2)
        if self.rotation is not None:
            q = rotate(q, step.tables[self.rotation.name], interleaved=self.rotation.rope.interleaved)
        out, _ = self.weigh(q, shared[self.mixer.sliding_window], step, None)
        return self.o_proj(out.flatten(2)), shared


def _gives_keys(source: object, mixer: Attention) -> bool:
    """Return whether the keys and values of the layer `source` are those that a layer with shares_kv can read."""
    if not isinstance(source, Attention) or source.shares_kv:
        return False
    fields = ("sliding_window", "attention_chunk_size", "num_key_value_heads", "head_dim", "value_dim", "causal")
    return all(getattr(source, field) == getattr(mixer, field) for field in fields)


def attention_class(spec: ModelSpec, mixer: Attention) -> type[AttentionLayer]:
    """Return the class of an attention layer.

    Raises UnsupportedError for a combination of fields that no class implements.
    """
    classes = {
        "output_gate": gated_class(mixer),
        "output_norm": NormedOutputAttention if mixer.output_norm else None,
        "differential": DifferentialAttention if mixer.differential else None,
        "attention_experts": ExpertAttention if mixer.attention_experts is not None else None,
        "shares_kv": _sharing_class(spec, mixer),
    }
    special = {field: kind for field, kind in classes.items() if kind is not None}
    if len(special) > 1:
        raise UnsupportedError(f"attention with {' and '.join(special)} is not implemented in the PyTorch model yet")
    return next(iter(special.values()), AttentionLayer)


def _sharing_class(spec: ModelSpec, mixer: Attention) -> type[AttentionLayer] | None:
    """Return the class of a layer in a model whose layers share keys and values. None: the model has no such layers."""
    if mixer.shares_kv:
        return ReadingAttention
    return StoringAttention if any(other.shares_kv for other in spec.attentions) else None
