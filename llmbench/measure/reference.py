"""Reference measurements: the rates of this machine for a matrix product, a copy, a read and a kernel launch.

They are measured in the same run as the candidates. A share of the datasheet's peak depends on the kernel, and on the
present power and clocks of the machine. A share of a reference measurement depends only on the kernel.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec

from llmbench.measure.measurement import Measurement
from llmbench.spec.device import DeviceSpec, DType

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from llmbench.measure.clock import Call, Clock

__all__ = [
    "Bandwidth",
    "Limits",
    "ReferenceMeasurement",
    "ReferenceMeasurements",
    "Sizes",
    "datasheet_limits",
    "measure_matmul",
    "measure_references",
]


Bandwidth = Literal["copy", "read"]
"""The reference measurement that limits the memory traffic of a call."""


class Limits(NamedTuple):
    """A roofline: the highest FLOP/s and the highest bytes/s that a call can reach."""

    flops_per_s: float
    bytes_per_s: float

    def least_s(self, flops: float, bytes: float) -> float:
        """Return the least time in seconds for `flops` FLOPs and `bytes` bytes of memory traffic.

        It is the longer of the two times, because computation and memory traffic can overlap.
        """
        return max(flops / self.flops_per_s, bytes / self.bytes_per_s)


class ReferenceMeasurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A measured rate. `work`: the FLOPs, bytes or launches of one call. `measurement`: the time of one call."""

    description: str
    work: int
    measurement: Measurement

    def __post_init__(self) -> None:
        # msgspec turns a ValueError into a ValidationError, which names the position in the result file.
        if self.work < 1 or self.measurement.median_s <= 0:
            raise ValueError("a reference measurement needs work of at least 1 and a time above 0")

    @property
    def per_s(self) -> float:
        """The rate: `work` per second, computed from the median time."""
        return self.work / self.measurement.median_s

    @property
    def unit_s(self) -> float:
        """Seconds per unit of work, for example per launch."""
        return self.measurement.median_s / self.work


class ReferenceMeasurements(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The reference measurements of a run.

    `matmul`: the FLOP/s of a square matrix product.
    `copy`: the bytes/s of a copy of a buffer; read and written bytes both count.
    `read`: the bytes/s of a sum over a buffer.
    `launch`: the launches/s of many ops on one element, one op after another.
    """

    matmul: ReferenceMeasurement
    copy: ReferenceMeasurement
    read: ReferenceMeasurement
    launch: ReferenceMeasurement

    def limits(self, bandwidth: Bandwidth = "copy") -> Limits:
        """Return the measured roofline. `bandwidth`: the reference measurement that gives the bytes/s.

        "read" suits work that writes few bytes, such as decoding.
        """
        return Limits(self.matmul.per_s, getattr(self, bandwidth).per_s)


def datasheet_limits(device: DeviceSpec, dtype: DType) -> Limits | None:
    """Return the datasheet's roofline without sparsity, or None if the datasheet lacks one of the two rates.

    For fp32, the rate of tf32 is used if the device has tf32 (see `kernels.proof.accuracy.tf32_products`).
    """
    flops, memory = device.peak_flops_per_s(dtype), device.memory_bandwidth_bytes_per_s
    if dtype == "fp32":
        flops = device.peak_flops_per_s("tf32") or flops
    return None if flops is None or memory is None else Limits(flops, float(memory.value))


class Sizes(NamedTuple):
    """The sizes of the reference measurements.

    `matmul`: rows and columns of the matrix product. `bytes`: bytes of the buffer that is read and copied. `launches`:
    launches per call.
    """

    matmul: int
    bytes: int
    launches: int


GPU = Sizes(matmul=8192, bytes=2**30, launches=1000)
CPU = Sizes(matmul=1024, bytes=2**27, launches=1000)


def measure_references(
    clock: Clock, dtype: torch.dtype, *, budget_s: float = 0.3, sizes: Sizes | None = None
) -> ReferenceMeasurements:
    """Take the four reference measurements, in `budget_s` seconds each.

    `dtype`: the number format of the run, in which the matrix product is computed. The values are random. A product of
    zeros would need less power, and a GPU would therefore run it faster.
    """
    import torch

    from llmbench.measure.clock import CpuClock

    device = clock.device
    sizes = sizes or (GPU if device.type == "cuda" else CPU)

    def timed(description: str, work: int, call: Call, by: Clock = clock) -> ReferenceMeasurement:
        return _timed(description, work, call, by, budget_s)

    matmul = measure_matmul(clock, dtype, budget_s=budget_s, size=sizes.matmul)
    source = torch.randn(sizes.bytes // 4, device=device)
    target = torch.empty_like(source)
    size = f"{source.nbytes / 2**20:,.0f} MiB"
    copy = timed(f"copy of {size}, read and written", 2 * source.nbytes, lambda: target.copy_(source))
    read = timed(f"sum of {size}", source.nbytes, lambda: source.sum())
    one = torch.zeros(1, device=device)
    # A wall clock measures the launches, because a launch takes time on the CPU, even if the GPU is slower.
    launch = timed("x += 1 of one element", sizes.launches, lambda: _launches(one, sizes.launches), CpuClock())
    return ReferenceMeasurements(matmul=matmul, copy=copy, read=read, launch=launch)


def measure_matmul(
    clock: Clock, dtype: torch.dtype, *, budget_s: float = 0.3, size: int | None = None
) -> ReferenceMeasurement:
    """Take the reference measurement of a square matrix product, in `budget_s` seconds.

    `size`: the rows and columns of the matrices. None: the usual size for the device.
    """
    import torch

    device = clock.device
    a, b = _matrices(size or (GPU if device.type == "cuda" else CPU).matmul, dtype, device)
    n, name = len(a), str(dtype).removeprefix("torch.")
    as_tf32 = " (in tf32)" if a.is_cuda and dtype == torch.float32 and torch.cuda.is_tf32_supported() else ""
    # The second factor is transposed, like the weight of a linear layer. In fp16, a CPU computes the transposed product
    # ten times as fast. A GPU computes both at the same speed.
    return _timed(f"{name} {n}×{n}×{n} product{as_tf32}", 2 * n**3, lambda: a @ b.T, clock, budget_s)


def _timed(description: str, work: int, call: Call, clock: Clock, budget_s: float) -> ReferenceMeasurement:
    """Return the rate of a call that does `work`."""
    from llmbench.measure.clock import compare

    measurement = compare({description: call}, clock=clock, budget_s=budget_s)[description]
    return ReferenceMeasurement(description=description, work=work, measurement=measurement)


LONGEST_S = 0.1
"""The longest time of a matrix product on a CPU, in seconds. A slower product is made smaller, which does not change
its FLOP/s. This happens in fp16 on CPUs without fp16 arithmetic. The size of the fp32 product is fixed, because
`regressions` compares only products of equal size."""

SMALLEST = 128
"""The rows and columns of the smallest matrix product."""


def _matrices(n: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the two factors of a square matrix product, [n, n] each. If a CPU is slow in `dtype`, n is smaller."""
    import torch

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
        import torch

        torch.cuda.synchronize(one.device)
