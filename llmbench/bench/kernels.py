"""Time Triton kernels: each registered `Kernel` at its own shapes, next to its reference in plain torch.

The file of a kernel defines its shapes, inputs, reference and cost. The kernel is checked at the shape at which it is
timed. If the fp64 reference does not fit into memory at that shape, the kernel is checked in its small cases instead.

A rehearsal runs the kernels in Triton's interpreter. It uses one small case instead of the shapes. A rehearsal tests
the measuring code, and its times have no meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from llmbench.bench.candidates import one_pass
from llmbench.bench.experiments.experiment import Group, Pace
from llmbench.errors import CannotRunError
from llmbench.kernels.formats import short
from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random, describe
from llmbench.kernels.launching import poisoned
from llmbench.kernels.proof.accuracy import Verdict, check_against
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.clock import Call
from llmbench.measure.reference import Bandwidth, ReferenceMeasurements
from llmbench.measure.results import Scalar
from llmbench.sizing.work import Pass

__all__ = ["KERNEL", "REFERENCE", "DeviceRandom", "inputs_of", "kernel_groups", "work_of"]

KERNEL, REFERENCE = "kernel", "reference"
"""The names of the two candidates of each group. The reference is the baseline."""


class DeviceRandom(Random):
    """Random tensors that are drawn on the device that uses them, because a CPU needs seconds to draw gigabytes. The
    same seed gives different values on different devices."""

    def __init__(self, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(seed, dtype, device)
        self.device_generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int, scale: float = 1.0, dtype: torch.dtype | None = None) -> Tensor:
        """Return normally distributed values with standard deviation `scale`, drawn directly in the requested
        format."""
        values = torch.randn(shape, generator=self.device_generator, dtype=dtype or self.dtype, device=self.device)
        return values if scale == 1.0 else values.mul_(scale)


def inputs_of(kernel: Kernel, case: Any, seed: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Return the kernel's inputs for a case, on the device."""
    return kernel.inputs(case, DeviceRandom(seed, dtype, device))


def work_of(cost: Cost, direction: Pass) -> tuple[int, int]:
    """Return the FLOPs and the bytes of the pass `direction` of a kernel. `cost`: the cost of the kernel."""
    if direction == "forward":
        return cost.flops, cost.bytes
    if direction == "backward":
        return cost.backward_flops, cost.backward_bytes
    return cost.flops + cost.backward_flops, cost.bytes + cost.backward_bytes


def kernel_groups(
    kernels: Sequence[Kernel],
    dtype: torch.dtype,
    direction: Pass,
    device: torch.device,
    *,
    pace: Pace,
    rehearsal: bool = False,
) -> list[Group]:
    """Return one group for each shape of each kernel, in one number format. With `rehearsal`, return one group per
    kernel, for the kernel's first small case."""
    return [
        _group(kernel, case, dtype, direction, device, pace)
        for kernel in kernels
        for case in (kernel.cases[:1] if rehearsal else kernel.shapes)
    ]


def _group(kernel: Kernel, case: Any, dtype: torch.dtype, direction: Pass, device: torch.device, pace: Pace) -> Group:
    fields: dict[str, Scalar] = {
        "kernel": kernel.name,
        "shape": describe(case),
        "dtype": short(dtype),
        "pass": direction,
    }
    return Group(
        experiment="kernels",
        case=fields,
        names=(KERNEL, REFERENCE),
        candidates=partial(_candidates, kernel, case, dtype, direction, device),
        pace=pace,
        graphs=direction != "backward",
    )


def _candidates(
    kernel: Kernel,
    case: Any,
    dtype: torch.dtype,
    direction: Pass,
    device: torch.device,
    references: ReferenceMeasurements,
) -> list[Candidate]:
    inputs = cache(partial(inputs_of, kernel, case, 0, dtype, device))
    flops, moved = work_of(kernel.cost(case, dtype), direction)
    bandwidth: Bandwidth = "read" if kernel.reads_only else "copy"
    extra: dict[str, Scalar] = {"bandwidth": bandwidth}

    def prepare(run: Callable[..., Any]) -> Call:
        if direction != "forward" and not kernel.differentiable:
            raise CannotRunError(f"{kernel.name} has no backward pass", hint="--pass forward")
        tensors = [value for value in inputs().values() if isinstance(value, Tensor)]
        extra["input_bytes"] = sum(tensor.nbytes for tensor in tensors)
        return one_pass(run, inputs(), direction, differentiable=kernel.differentiable)

    def candidate(name: str, run: Callable[..., Any], check: Callable[[], list[Verdict]] | None) -> Candidate:
        return Candidate(
            name=name,
            prepare=partial(prepare, run),
            check=check,
            work_flops=flops,
            work_bytes=moved,
            predicted_s=references.limits(bandwidth).least_s(flops, moved) if check else None,
            extra=extra,
        )

    def check() -> list[Verdict]:
        backward = direction != "forward"
        try:
            verdicts = _verdicts(kernel, inputs(), backward=backward)
            extra["checked"] = "at this shape"
        except (torch.OutOfMemoryError, MemoryError):  # the fp64 reference does not fit into memory at this shape
            small = (inputs_of(kernel, small_case, 0, dtype, device) for small_case in kernel.cases)
            verdicts = [verdict for tensors in small for verdict in _verdicts(kernel, tensors, backward=backward)]
            extra["checked"] = "in small cases"
        return verdicts

    return [candidate(KERNEL, kernel.run, check), candidate(REFERENCE, kernel.reference, None)]


def _verdicts(kernel: Kernel, inputs: Inputs, *, backward: bool) -> list[Verdict]:
    """Compare the kernel's outputs with those of its fp64 reference. With `backward`, also compare the gradients.

    New buffers are filled with NaN, so that the check detects an element that the kernel does not write.
    """
    with poisoned():
        return check_against(
            kernel.run, kernel.reference, inputs, differentiable=kernel.differentiable if backward else ()
        )
