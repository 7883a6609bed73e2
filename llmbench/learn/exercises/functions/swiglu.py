"""The gated feed-forward of LLaMA."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmbench.learn.exercises.function import Function

if TYPE_CHECKING:
    from torch import Tensor

    from llmbench.kernels.kernel import Inputs, Random


def reference(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return the gated feed-forward with the activation of the PyTorch model."""
    from llmbench.model.implementations.plain import glu

    return glu(x @ gate.T, x @ up.T, "silu") @ down.T


def cases(random: Random) -> Iterator[tuple[str, Inputs]]:
    """Yield several shapes and sizes of values."""
    for label, shape, inner, scale in (
        ("x [2, 3, 8], F 12", (2, 3, 8), 12, 1.0),
        ("one vector", (4,), 6, 1.0),
        ("F 1", (3, 5), 1, 1.0),
        ("large values", (2, 8), 16, 30.0),
        ("zeros", (2, 8), 16, 0.0),
    ):
        width = shape[-1]
        inputs = {"x": random.normal(*shape, scale=scale)}
        inputs |= {name: random.normal(inner, width, scale=width**-0.5) for name in ("gate", "up")}
        yield label, {**inputs, "down": random.normal(width, inner, scale=inner**-0.5)}


EXERCISE = Function(
    summary="SwiGLU feed-forward",
    signature="swiglu(x, gate, up, down)",
    arguments=("x [..., D]", "gate, up [F, D]: as in torch.nn.Linear", "down [D, F]"),
    returns="a tensor with the shape of x",
    formula="y = (silu(x gateᵀ) × (x upᵀ)) downᵀ, silu(z) = z × sigmoid(z)",
    source="Shazeer, arXiv 2002.05202",
    hint="The activation is on the gate alone.",
    reference=reference,
    cases=cases,
)
