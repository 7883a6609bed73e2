"""The type of an op that takes a kernel's inputs, and a function that copies these inputs."""

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
    """Return copies of the inputs. An op that overwrites its inputs gets the copies."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
