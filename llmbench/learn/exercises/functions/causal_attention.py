"""Causal attention of several heads."""

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
    """Yield whole sequences, single tokens, queries after a cache, and large scores."""
    for label, heads, queries, keys, width, scale in (
        ("4 tokens, 1 head", 1, 4, 4, 8, 1.0),
        ("7 tokens, 3 heads", 3, 7, 7, 16, 1.0),
        ("one token", 2, 1, 1, 8, 1.0),
        ("one new token after 5 cached ones", 2, 1, 6, 8, 1.0),
        ("3 new tokens after 4 cached ones", 2, 3, 7, 8, 1.0),
        ("large scores, for which exp overflows", 1, 5, 5, 8, 100.0),
    ):
        q, k, v = (random.normal(2, heads, length, width) for length in (queries, keys, keys))
        yield label, {"q": q * scale, "k": k, "v": v}


EXERCISE = Function(
    summary="causal attention of several heads",
    signature="causal_attention(q, k, v)",
    arguments=("q [B, N, S, H]: the last S of T tokens", "k, v [B, N, T, H], with T ≥ S"),
    returns="a tensor [B, N, S, H]",
    formula="softmax(q kᵀ / √H + mask) v; query i is token T − S + i and sees the keys up to its own token",
    source="Vaswani et al., arXiv 1706.03762",
    hint="For S < T, the mask is not the lower triangle: it is shifted by T − S. Subtract the largest score before "
    "exp, or use torch.softmax. `llmbench worked attention` shows every number.",
    reference=reference,
    cases=cases,
)
