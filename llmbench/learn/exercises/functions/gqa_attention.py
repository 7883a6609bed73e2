"""Causal attention with grouped heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmbench.learn.exercises.function import Function
from llmbench.learn.exercises.functions.attention import attention

if TYPE_CHECKING:
    from torch import Tensor

    from llmbench.kernels.kernel import Inputs, Random


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the attention of the PyTorch model."""
    return attention(q, k, v, causal=True)


def cases(random: Random) -> Iterator[tuple[str, Inputs]]:
    """Yield MHA, GQA and MQA."""
    for label, heads, kv_heads, length, width in (
        ("4 query heads, 2 KV heads", 4, 2, 4, 8),
        ("6 query heads, 2 KV heads", 6, 2, 5, 8),
        ("4 query heads, 4 KV heads (MHA)", 4, 4, 5, 8),
        ("5 query heads, 1 KV head (MQA)", 5, 1, 3, 16),
        ("one token", 8, 2, 1, 8),
    ):
        q = random.normal(2, heads, length, width)
        yield label, {"q": q, **{name: random.normal(2, kv_heads, length, width) for name in "kv"}}


EXERCISE = Function(
    summary="causal attention with grouped heads (GQA)",
    signature="gqa_attention(q, k, v)",
    arguments=("q [B, N, S, H]: N query heads", "k, v [B, K, S, H]: K KV heads; K divides N"),
    returns="a tensor [B, N, S, H]",
    formula="query head n uses KV head floor(n / (N/K)); then softmax(q kᵀ / √H + causal mask) v",
    source="Ainslie et al., arXiv 2305.13245",
    hint="The first N/K query heads use KV head 0. `repeat_interleave` repeats heads in this order, `repeat` does not.",
    reference=reference,
    cases=cases,
)
