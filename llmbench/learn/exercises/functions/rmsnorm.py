"""RMSNorm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmbench.learn.exercises.function import Function

if TYPE_CHECKING:
    from torch import Tensor

    from llmbench.kernels.kernel import Inputs, Random


def reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return the norm of the PyTorch model."""
    from llmbench.model.implementations.plain import norm
    from llmbench.spec.model import Norm

    return norm(x, None, weight, None, Norm(kind="rmsnorm", eps=eps))[0]


def cases(random: Random) -> Iterator[tuple[str, Inputs]]:
    """Yield shapes with one to four dimensions, and values for which eps matters."""
    for label, shape, scale, eps in (
        ("[2, 3, 8]", (2, 3, 8), 1.0, 1e-6),
        ("one vector [5]", (5,), 1.0, 1e-5),
        ("width 1", (4, 1), 1.0, 1e-5),
        ("[2, 2, 3, 64]", (2, 2, 3, 64), 3.0, 1e-6),
        ("small values, for which eps matters", (3, 16), 1e-3, 1e-5),
        ("large values", (3, 16), 1e4, 1e-6),
        ("zeros", (2, 4), 0.0, 1e-6),
        ("mean far from 0", (3, 16), 1.0, 1e-6),
    ):
        x = random.normal(*shape, scale=scale)
        x = x + 10 if label.startswith("mean") else x
        yield label, {"x": x, "weight": 1 + random.normal(shape[-1], scale=0.3), "eps": eps}


EXERCISE = Function(
    summary="RMSNorm over the last dimension",
    signature="rmsnorm(x, weight, eps)",
    arguments=("x [..., D]", "weight [D]", "eps: a number"),
    returns="a tensor with the shape of x",
    formula="y = x / √(mean(x²) + eps) × weight",
    source="Zhang and Sennrich, arXiv 1910.07467",
    hint="eps is inside the root. The mean is over the last dimension, so keep this dimension.",
    reference=reference,
    cases=cases,
)
