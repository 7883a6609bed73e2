"""Reference measurements: this machine's rates for a product, a copy, a read and a launch, measured in the same run.

A share of the datasheet's peak includes two losses: those of the kernel, and those of the machine at its present power
and clocks. A share of a reference measurement includes only the losses of the kernel.
"""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

import msgspec
import torch
from torch import Tensor

from llmbench.measure.clock import Call, Clock, CpuClock, compare
from llmbench.measure.measurement import Measurement
from llmbench.spec.device import DeviceSpec, DType

__all__ = [
    "Bandwidth",
    "Limits",
    "ReferenceMeasurement",
    "ReferenceMeasurements",
    "Sizes",
    "datasheet_limits",
    "measure_references",
]


Bandwidth = Literal["copy", "read"]
"""The reference measurement whose rate limits the bytes of a call."""


class Limits(NamedTuple):
    """A roofline: the highest rates that a call can reach."""

    flops_per_s: float
    bytes_per_s: float

    def least_s(self, flops: float, bytes: float) -> float:
        """Return the least seconds for this work, if products and memory traffic overlap: the longer of the two
        times."""
        return max(flops / self.flops_per_s, bytes / self.bytes_per_s)


class ReferenceMeasurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured rate. `work`: FLOPs, bytes or launches of one call."""

    description: str
    work: int
    measurement: Measurement

    @property
    def per_s(self) -> float:
        """Work per second, by the median."""
        return self.work / self.measurement.median_s

    @property
    def unit_s(self) -> float:
        """Seconds per unit of work, as for one launch."""
        return self.measurement.median_s / self.work


class ReferenceMeasurements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The reference measurements of a run. `matmul`: FLOP/s of a square matrix product. `copy`: bytes/s of a copy, read
    plus written. `read`: bytes/s of a sum over a buffer. `launch`: launches/s of ops on one element, one after
    another."""

    matmul: ReferenceMeasurement
    copy: ReferenceMeasurement
    read: ReferenceMeasurement
    launch: ReferenceMeasurement

    def limits(self, bandwidth: Bandwidth = "copy") -> Limits:
        """Return the measured roofline. `bandwidth`: the rate for bytes; "read" suits work that hardly writes, as
        decoding does."""
        return Limits(self.matmul.per_s, getattr(self, bandwidth).per_s)


def datasheet_limits(device: DeviceSpec, dtype: DType) -> Limits | None:
    """Return the datasheet's dense roofline; None if it lacks one of the two rates. fp32 uses the tf32 rate (see
    `kernels.proof.accuracy.tf32_products`) if the device has tf32."""
    flops, memory = device.peak_flops_per_s(dtype), device.memory_bandwidth_bytes_per_s
    if dtype == "fp32":
        flops = device.peak_flops_per_s("tf32") or flops
    return None if flops is None or memory is None else Limits(flops, float(memory.value))


class Sizes(NamedTuple):
    """Sizes of the reference measurements: rows and columns of the product, bytes of the buffer that is read and
    copied, launches per call."""

    matmul: int
    bytes: int
    launches: int


GPU = Sizes(matmul=8192, bytes=2**30, launches=1000)
CPU = Sizes(matmul=1024, bytes=2**27, launches=1000)


def measure_references(
    clock: Clock, dtype: torch.dtype, *, budget_s: float = 0.3, sizes: Sizes | None = None
) -> ReferenceMeasurements:
    """Take the reference measurements, `budget_s` seconds each.

    `dtype`: the run's number format, in which the product is computed. The values are random, because zeros need less
    power and therefore run faster.
    """
    device = clock.device
    sizes = sizes or (GPU if device.type == "cuda" else CPU)

    def timed(description: str, work: int, call: Call, by: Clock = clock) -> ReferenceMeasurement:
        measurement = compare({description: call}, clock=by, budget_s=budget_s)[description]
        return ReferenceMeasurement(description=description, work=work, measurement=measurement)

    a, b = _matrices(sizes.matmul, dtype, device)
    n, name = len(a), str(dtype).removeprefix("torch.")
    as_tf32 = " (in tf32)" if a.is_cuda and dtype == torch.float32 and torch.cuda.is_tf32_supported() else ""
    # The second factor is transposed, as the weight of a layer is. In fp16 this makes a CPU ten times as fast, and a
    # GPU no slower.
    matmul = timed(f"{name} {n}×{n}×{n} product{as_tf32}", 2 * n**3, lambda: a @ b.T)
    source = torch.randn(sizes.bytes // 4, device=device)
    target = torch.empty_like(source)
    size = f"{source.nbytes / 2**20:,.0f} MiB"
    copy = timed(f"copy of {size}, read and written", 2 * source.nbytes, lambda: target.copy_(source))
    read = timed(f"sum of {size}", source.nbytes, lambda: source.sum())
    one = torch.zeros(1, device=device)
    # A wall clock measures the launches, because they cost time of the CPU, whether or not the GPU keeps up with them.
    launch = timed("x += 1 of one element", sizes.launches, lambda: _launches(one, sizes.launches), CpuClock())
    return ReferenceMeasurements(matmul=matmul, copy=copy, read=read, launch=launch)


LONGEST_S = 0.1
"""Seconds. A product that takes longer on a CPU is made smaller, which does not change its rate. This happens in fp16
on CPUs without fp16 arithmetic. The fp32 product is never made smaller, because runs are compared by it, and a busy
moment must not change its size."""

SMALLEST = 128
"""Rows and columns of the smallest product."""


def _matrices(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the factors of a square product, [n, n] each, or smaller if a CPU is slow in `dtype`."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    while device.type == "cpu" and dtype != torch.float32 and len(a) > SMALLEST:
        start = time.perf_counter()
        a @ b.T
        if time.perf_counter() - start < LONGEST_S:
            break
        half = len(a) // 2
        a, b = a[:half, :half].contiguous(), b[:half, :half].contiguous()
    return a, b


def _launches(one: Tensor, count: int) -> None:
    """Launch `count` ops on one element and wait for them."""
    for _ in range(count):
        one.add_(1)
    if one.is_cuda:
        torch.cuda.synchronize(one.device)
