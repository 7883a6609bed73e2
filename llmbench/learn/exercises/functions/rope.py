"""Rotary position embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmbench.learn.exercises.function import Function

if TYPE_CHECKING:
    from torch import Tensor

    from llmbench.kernels.kernel import Inputs, Random


def reference(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """Return the rotation of the PyTorch model."""
    import torch

    from llmbench.model.positions import rotate
    from llmbench.spec.position import rope_frequency

    dims = x.shape[-1]
    frequencies = rope_frequency(theta, torch.arange(dims // 2, dtype=x.dtype), dims)
    angles = positions[:, None].to(x.dtype) * frequencies
    return rotate(x, (angles.cos()[None, None], angles.sin()[None, None]), interleaved=False)


def cases(random: Random) -> Iterator[tuple[str, Inputs]]:
    """Yield several shapes, bases and positions."""
    import torch

    for label, shape, positions, theta in (
        ("x [1, 1, 4, 8]", (1, 1, 4, 8), range(4), 10000.0),
        ("two sequences, three heads", (2, 3, 5, 16), range(5), 10000.0),
        ("one pair", (1, 2, 3, 2), range(3), 10000.0),
        ("one token at position 7, as in decoding", (2, 2, 1, 8), [7], 10000.0),
        ("positions with gaps, not in order", (1, 2, 4, 8), [3, 0, 100, 17], 10000.0),
        ("base 500000", (1, 2, 6, 64), range(6), 500000.0),
        ("late positions", (1, 1, 3, 32), [1000, 1001, 2047], 10000.0),
    ):
        yield label, {"x": random.normal(*shape), "positions": torch.tensor(list(positions)), "theta": theta}


EXERCISE = Function(
    summary="rotary positions of queries or keys",
    signature="rope(x, positions, theta)",
    arguments=("x [B, N, S, H]: queries or keys of N heads; H is even", "positions [S]: integers", "theta: the base"),
    returns="a tensor with the shape of x",
    formula="pair i = channels i and i + H/2; angle = position × theta^(−2i/H); y[i] = x[i] cos − x[i + H/2] sin; "
    "y[i + H/2] = x[i + H/2] cos + x[i] sin",
    source="Su et al., arXiv 2104.09864; pairs as in GPT-NeoX and LLaMA",
    hint="cos and sin have one row per position and one column per pair. `llmbench worked rope` shows every number.",
    reference=reference,
    cases=cases,
)
