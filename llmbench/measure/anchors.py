"""What this machine can do at best, measured in the same run: products, copies, reads, launches.

Fractions of a datasheet's peak mix what a kernel wastes with what the machine cannot do at all, at its power and
clocks of the day; fractions of an anchor do not.
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

__all__ = ["Anchor", "Anchors", "Bandwidth", "Limits", "Sizes", "datasheet_limits", "measure_anchors"]


Bandwidth = Literal["copy", "read"]
"""The anchor that bytes are held against."""


class Limits(NamedTuple):
    """A roofline: the rates that no call passes."""

    flops_per_s: float
    bytes_per_s: float

    def least_s(self, flops: float, bytes: float) -> float:
        """Seconds that this work needs at least: products and traffic at once, whichever takes longer."""
        return max(flops / self.flops_per_s, bytes / self.bytes_per_s)


class Anchor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A thing that was timed: `work` is that of one call, in FLOPs, bytes or launches."""

    what: str
    work: int
    measurement: Measurement

    @property
    def per_s(self) -> float:
        """Work a second, by the median."""
        return self.work / self.measurement.median_s

    @property
    def each_s(self) -> float:
        """Seconds of one unit of work: of a launch."""
        return self.measurement.median_s / self.work


class Anchors(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The anchors of a run. `matmul`: FLOPs of a square product. `copy`: bytes read and written. `read`: bytes summed
    up. `launch`: ops on one element, one behind the other."""

    matmul: Anchor
    copy: Anchor
    read: Anchor
    launch: Anchor

    def limits(self, bandwidth: Bandwidth = "copy") -> Limits:
        """The roofline of what was measured, with bytes at the rate of that anchor: `read` for work that hardly writes,
        as decoding is."""
        return Limits(self.matmul.per_s, getattr(self, bandwidth).per_s)


def datasheet_limits(device: DeviceSpec, dtype: DType) -> Limits | None:
    """The roofline of a datasheet, dense; None where it does not give one of the two. fp32 is multiplied in tf32 (see
    `kernels.accuracy.tf32_products`) where a device has that."""
    flops, memory = device.peak_flops_per_s(dtype), device.memory_bandwidth_bytes_per_s
    if dtype == "fp32":
        flops = device.peak_flops_per_s("tf32") or flops
    return None if flops is None or memory is None else Limits(flops, float(memory.value))


class Sizes(NamedTuple):
    """How large the anchors are: rows and columns of the product, bytes of the buffer that is read (and copied),
    launches in a call."""

    matmul: int
    bytes: int
    launches: int


GPU = Sizes(matmul=8192, bytes=2**30, launches=1000)
CPU = Sizes(matmul=1024, bytes=2**27, launches=1000)


def measure_anchors(clock: Clock, dtype: torch.dtype, *, budget_s: float = 0.3, sizes: Sizes | None = None) -> Anchors:
    """Measure them, `budget_s` seconds each, on random values: zeros take less power and so go faster. The product is
    one of matrices in `dtype`, the format of what is held against it."""
    device = clock.device
    sizes = sizes or (GPU if device.type == "cuda" else CPU)

    def timed(what: str, work: int, call: Call, by: Clock = clock) -> Anchor:
        return Anchor(what=what, work=work, measurement=compare({what: call}, clock=by, budget_s=budget_s)[what])

    a, b = _matrices(sizes.matmul, dtype, device)
    n, name = len(a), str(dtype).removeprefix("torch.")
    as_tf32 = " (in tf32)" if a.is_cuda and dtype == torch.float32 and torch.cuda.is_tf32_supported() else ""
    # The second factor lies as a layer's weight does: CPUs are ten times as fast at it in fp16, GPUs no slower.
    matmul = timed(f"{name} {n}×{n}×{n} product{as_tf32}", 2 * n**3, lambda: a @ b.T)
    source = torch.randn(sizes.bytes // 4, device=device)
    target = torch.empty_like(source)
    size = f"{source.nbytes / 2**20:,.0f} MiB"
    copy = timed(f"copy of {size}, read and written", 2 * source.nbytes, lambda: target.copy_(source))
    read = timed(f"sum of {size}", source.nbytes, lambda: source.sum())
    one = torch.zeros(1, device=device)
    # A wall clock, because the cost is the CPU's: it hands launches over faster or slower than the GPU ends them.
    launch = timed("x += 1 of one element", sizes.launches, lambda: _launches(one, sizes.launches), CpuClock())
    return Anchors(matmul=matmul, copy=copy, read=read, launch=launch)


LONGEST_S = 0.1
"""A product that takes longer, as one in fp16 does on CPUs that cannot multiply it, is made smaller: its rate is that
of a larger one. Never one in fp32, which every CPU multiplies: runs are compared by it, and a busy moment must not
change what it is."""


def _matrices(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The factors of a square product, n × n each or, where a CPU is slow at it, smaller."""
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    while device.type == "cpu" and dtype != torch.float32 and len(a) > SMALLEST:
        start = time.perf_counter()
        a @ b.T
        if time.perf_counter() - start < LONGEST_S:
            break
        half = len(a) // 2
        a, b = a[:half, :half].contiguous(), b[:half, :half].contiguous()
    return a, b


SMALLEST = 128


def _launches(one: Tensor, count: int) -> None:
    for _ in range(count):
        one.add_(1)
    if one.is_cuda:
        torch.cuda.synchronize(one.device)
