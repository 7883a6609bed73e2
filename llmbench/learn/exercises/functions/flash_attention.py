"""Attention with an online softmax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmbench.learn.exercises.function import Function
from llmbench.learn.exercises.functions.attention import attention

if TYPE_CHECKING:
    from torch import Tensor

    from llmbench.kernels.kernel import Inputs, Random


def reference(q: Tensor, k: Tensor, v: Tensor, block: int) -> Tensor:
    """Return the attention of the PyTorch model."""
    return attention(q[None, None], k[None, None], v[None, None], causal=False)[0, 0]


def cases(random: Random) -> Iterator[tuple[str, Inputs]]:
    """Yield lengths that the block divides or not, and large scores."""
    for label, queries, keys, width, block, scale in (
        ("8 keys in blocks of 4", 3, 8, 8, 4, 1.0),
        ("7 keys in blocks of 3", 4, 7, 8, 3, 1.0),
        ("blocks of one key", 2, 5, 4, 1, 1.0),
        ("one block", 2, 5, 4, 64, 1.0),
        ("256 keys in blocks of 16", 4, 256, 16, 16, 1.0),
        ("large scores, for which exp overflows", 3, 12, 8, 4, 100.0),
    ):
        q, k, v = (random.normal(length, width) for length in (queries, keys, keys))
        yield label, {"q": q * scale, "k": k, "v": v, "block": block}


EXERCISE = Function(
    summary="attention in blocks of keys, with an online softmax",
    signature="flash_attention(q, k, v, block)",
    arguments=("q [S, H]", "k, v [T, H]", "block: the number of keys in a block; the last block may be smaller"),
    returns="a tensor [S, H]",
    formula="per block: m' = max(m, s), f = exp(m − m'), p = exp(s − m'), l' = l f + Σ p, a' = a f + p v; at the end "
    "a / l",
    source="Dao et al., arXiv 2205.14135, algorithm 1",
    hint="No mask: every query sees every key. The sum of one softmax per block is wrong. `llmbench worked flash` "
    "shows every number. The check sees only the result, not whether you kept all scores.",
    reference=reference,
    cases=cases,
)
