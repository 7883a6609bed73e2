"""From a kernel and a case to what a pass is made of: inputs on the device, and the work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random
from llmbench.sizing.work import Pass

__all__ = ["EACH_WAY", "OnDevice", "Op", "cloned", "inputs_of", "work_of"]

Op = Callable[..., Tensor | tuple[Tensor, ...]]
"""What takes the inputs of a kernel by keyword."""

EACH_WAY: tuple[Pass, ...] = ("forward", "backward")


class OnDevice(Random):
    """Random tensors made where they are used: gigabytes of weights would take the CPU seconds. Another GPU, or a CPU,
    makes other ones from the same seed."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(seed, dtype, device)
        self.there = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Normally distributed values of that standard deviation, drawn in their own format."""
        values = torch.randn(shape, generator=self.there, dtype=dtype or self.dtype, device=self.device)
        return values if scale == 1.0 else values.mul_(scale)


def inputs_of(kernel: Kernel, case: Any, seed: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    """The kernel's inputs for a case, on the device."""
    return kernel.inputs(case, OnDevice(seed, dtype, device))


def cloned(inputs: Inputs) -> Inputs:
    """Copies, for what writes over its inputs."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def work_of(cost: Cost, way: Pass) -> tuple[int, int]:
    """FLOPs and bytes of a pass."""
    if way == "forward":
        return cost.flops, cost.bytes
    if way == "backward":
        return cost.backward_flops, cost.backward_bytes
    return cost.flops + cost.backward_flops, cost.bytes + cost.backward_bytes
