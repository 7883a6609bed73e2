"""LayerNorm."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmbench.learn.exercises.function import Function

if TYPE_CHECKING:
    from torch import Tensor

    from llmbench.kernels.kernel import Inputs, Random


def reference(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Return the norm of the PyTorch model."""
    from llmbench.model.implementations.plain import norm
    from llmbench.spec.model import Norm

    return norm(x, None, weight, bias, Norm(kind="layernorm", bias=True, eps=eps))[0]


def cases(random: Random) -> Iterator[tuple[str, Inputs]]:
    """Yield shapes with one to four dimensions, and values for which eps and the order of the sums matter."""
    for label, shape, scale, shift, eps in (
        ("[2, 3, 8]", (2, 3, 8), 1.0, 0.0, 1e-5),
        ("one vector [5]", (5,), 1.0, 0.0, 1e-5),
        ("[2, 2, 3, 64]", (2, 2, 3, 64), 3.0, 0.0, 1e-5),
        ("small values, for which eps matters", (3, 16), 1e-3, 0.0, 1e-5),
        ("equal values, whose variance is 0", (2, 4), 0.0, 1.0, 1e-5),
        ("mean far from 0", (16, 128), 1.0, 100.0, 1e-5),
    ):
        inputs = {"x": random.normal(*shape, scale=scale) + shift, "eps": eps}
        yield label, {**inputs, "weight": 1 + random.normal(shape[-1], scale=0.3), "bias": random.normal(shape[-1])}


EXERCISE = Function(
    summary="LayerNorm over the last dimension",
    signature="layernorm(x, weight, bias, eps)",
    arguments=("x [..., D]", "weight, bias [D]", "eps: a number"),
    returns="a tensor with the shape of x",
    formula="y = (x − mean(x)) / √(mean((x − mean(x))²) + eps) × weight + bias",
    source="Ba et al., arXiv 1607.06450",
    hint="The variance divides by D, not by D − 1. mean(x²) − mean(x)² loses digits if the mean is far from 0.",
    reference=reference,
    cases=cases,
)
