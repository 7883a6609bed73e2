"""Sinusoidal positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmbench.learn.exercises.function import Function

if TYPE_CHECKING:
    from torch import Tensor

    from llmbench.kernels.kernel import Inputs, Random


def reference(positions: Tensor, width: int) -> Tensor:
    """Return the vectors of the PyTorch model."""
    from llmbench.model.positions import sinusoids
    from llmbench.spec.position import SinusoidalPositions

    return sinusoids(SinusoidalPositions(), positions[None], width, positions.dtype)[0]


def cases(random: Random) -> Iterator[tuple[str, Inputs]]:
    """Yield several widths, and positions that do not begin at 0."""
    import torch

    for label, positions, width in (
        ("4 positions, width 8", range(4), 8),
        ("one position, width 2", [3], 2),
        ("width 64", range(10), 64),
        ("positions with gaps, not in order", [7, 0, 100, 31], 16),
        ("late positions", [1000, 2047], 32),
    ):
        yield label, {"positions": torch.tensor(list(positions), dtype=torch.float32), "width": width}


EXERCISE = Function(
    summary="sinusoidal positions of the original Transformer",
    signature="sinusoidal_positions(positions, width)",
    arguments=("positions [S], in float32", "width: the even number of channels D"),
    returns="a tensor [S, D]",
    formula="y[p, 2i] = sin(p / 10000^(2i/D)); y[p, 2i + 1] = cos(p / 10000^(2i/D))",
    source="Vaswani et al., arXiv 1706.03762, section 3.5",
    hint="Sines and cosines alternate. They are no halves.",
    reference=reference,
    cases=cases,
)
