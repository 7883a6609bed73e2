"""Helpers of the GPU benchmarks: the op of a kernel, and copies of its inputs."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from llmbench.bench.kernels import inputs_of, work_of
from llmbench.kernels.kernel import Inputs
from llmbench.sizing.work import Pass

__all__ = ["EACH_WAY", "Op", "cloned", "inputs_of", "work_of"]

Op = Callable[..., Tensor | tuple[Tensor, ...]]
"""A function that takes the inputs of a kernel by keyword."""

EACH_WAY: tuple[Pass, ...] = ("forward", "backward")


def cloned(inputs: Inputs) -> Inputs:
    """Copies, for what writes over its inputs."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
