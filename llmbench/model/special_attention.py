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
from llmbench.model.gated_attention import gated_class
from llmbench.model.implementations.interface import Given, Implementation, Scores, Seen
from llmbench.model.layer_cache import LayerCache
from llmbench.model.norms import NormLayer, times
from llmbench.model.step import Step
from llmbench.spec.mixer import Attention
from llmbench.spec.model import ModelSpec, Norm


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


def attention_class(mixer: Attention) -> type[AttentionLayer]:
    """Return the class of an attention layer.

    Raises UnsupportedError for a combination of fields that no class implements.
    """
    classes = {
        "output_gate": gated_class(mixer),
        "output_norm": NormedOutputAttention if mixer.output_norm else None,
        "differential": DifferentialAttention if mixer.differential else None,
    }
    special = {field: kind for field, kind in classes.items() if kind is not None}
    if len(special) > 1:
        raise UnsupportedError(f"attention with {' and '.join(special)} is not implemented in the PyTorch model yet")
    return next(iter(special.values()), AttentionLayer)
