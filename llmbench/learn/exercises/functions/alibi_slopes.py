"""The slopes of ALiBi."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmbench.learn.exercises.function import Function

if TYPE_CHECKING:
    from torch import Tensor

    from llmbench.kernels.kernel import Inputs, Random


def reference(num_heads: int) -> Tensor:
    """Return the slopes of the PyTorch model."""
    from llmbench.model.positions import alibi_slopes

    return alibi_slopes(num_heads)


def cases(random: Random) -> Iterator[tuple[str, Inputs]]:
    """Yield powers of two, and other numbers of heads."""
    for heads in (8, 1, 2, 16, 32, 12, 3, 20, 71):
        yield f"{heads} heads", {"num_heads": heads}


EXERCISE = Function(
    summary="slopes of ALiBi's heads",
    signature="alibi_slopes(num_heads)",
    arguments=("num_heads: the number of heads N",),
    returns="a tensor [N] in float32, or a list of N numbers",
    formula="n = largest power of two ≤ N; head h < n: 2^(−8(h + 1)/n); the others: every second slope of 2n heads, "
    "from its first: 2^(−4(2(h − n) + 1)/n)",
    source="Press et al., arXiv 2108.12409, and its code for other numbers of heads",
    hint="Solve it for powers of two first. For 12 heads, the last four slopes are .707, .354, .177 and .088.",
    reference=reference,
    cases=cases,
)
