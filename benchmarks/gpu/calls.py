"""The type of a kernel's op in the GPU benchmarks, and copies of a kernel's inputs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from llmbench.kernels.kernel import Inputs
from llmbench.sizing.work import Pass

__all__ = ["FORWARD_AND_BACKWARD", "Op", "cloned"]

Op = Callable[..., Tensor | tuple[Tensor, ...]]
"""A function that takes the inputs of a kernel as keyword arguments."""

FORWARD_AND_BACKWARD: tuple[Pass, ...] = ("forward", "backward")


def cloned(inputs: Inputs) -> Inputs:
    """Return copies of the inputs, for an op that overwrites them."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
