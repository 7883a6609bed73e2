"""The raw time samples of a call, and the statistics of these samples. This module does not import torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.measure.telemetry import Conditions

__all__ = ["ClockKind", "Measurement", "MemoryPeak", "Ratio", "merged_remarks", "quantile", "ratio"]

ClockKind = Literal["cpu", "cuda-events", "cuda-graph"]
"""How a sample is timed.

`cpu`: a wall clock around several calls.
`cuda-events`: two CUDA events around one call. The time includes the gaps between the kernel launches of the call.
`cuda-graph`: two CUDA events around one replay of the call as a CUDA graph. The time includes no gaps.
"""

NOISY_SPREAD = 0.10
"""A measurement with at least this spread gets the remark "noisy"."""

CONTENTION_SHARE = 0.02
"""A measurement with at least this run-queue share gets the remark "CPU contention"."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The time of one call: its samples in seconds, and the statistics of the samples.

    `samples_s`: the samples in the order in which they were taken. A sample is the time of `calls_per_sample` calls,
        divided by their number.
    `warmup_calls`: the number of calls before the first sample.
    `cold`: whether the GPU's L2 cache was emptied before each sample.
    `threads`: the number of torch's threads on a CPU; None on a GPU.
    `run_queue_share`: the share of the time in which runnable threads waited for a core, median over the samples. None
        on a GPU, or if the system does not count this time.
    `barrier_s`: the barrier cost in seconds (see `measure.cpu`), median over the samples. None on a GPU, or for one
        thread.
    `conditions`: the state of the GPU during the measurement. None if the state is unknown.
    `notes`: facts that a reader must know before using the figures.
    """

    samples_s: tuple[float, ...]
    clock: ClockKind
    calls_per_sample: int = 1
    warmup_calls: int = 0
    cold: bool = False
    threads: int | None = None
    run_queue_share: float | None = None
    barrier_s: float | None = None
    conditions: Conditions | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # msgspec turns a ValueError into a ValidationError, which names the position in the result file.
        if not self.samples_s:
            raise ValueError("a measurement needs at least one sample")
        if not all(0 <= sample < math.inf for sample in self.samples_s):
            raise ValueError("each sample must be a number of seconds that is finite and not negative")
        if self.run_queue_share is not None and not 0 <= self.run_queue_share <= 1:
            raise ValueError("run_queue_share must be between 0 and 1")
        if self.barrier_s is not None and not 0 < self.barrier_s < math.inf:
            raise ValueError("barrier_s must be a number of seconds that is finite and above 0")

    @property
    def n(self) -> int:
        """The number of samples."""
        return len(self.samples_s)

    @property
    def median_s(self) -> float:
        """The median of the samples in seconds. Tables show this value as the time of the call."""
        return quantile(self.samples_s, 0.5)

    @property
    def p10_s(self) -> float:
        """The 10th percentile of the samples in seconds."""
        return quantile(self.samples_s, 0.1)

    @property
    def p90_s(self) -> float:
        """The 90th percentile of the samples in seconds."""
        return quantile(self.samples_s, 0.9)

    @property
    def iqr_s(self) -> float:
        """The interquartile range of the samples in seconds."""
        return quantile(self.samples_s, 0.75) - quantile(self.samples_s, 0.25)

    @property
    def spread(self) -> float:
        """The interquartile range of the samples as a share of their median; 0 if the median is 0."""
        return self.iqr_s / self.median_s if self.median_s else 0.0

    def remarks(self) -> tuple[str, ...]:
        """Return the notes, and remarks about noisy samples, CPU contention and GPU throttling if there were any."""
        return tuple(f"{kind}: {detail}" if detail else kind for kind, detail in self.remarks_by_kind().items())

    def remarks_by_kind(self) -> dict[str, str]:
        """Return the remarks as a dict: the keys are kinds of remarks, and the values are details."""
        remarks = dict.fromkeys(self.notes, "")
        if self.spread >= NOISY_SPREAD:
            remarks["noisy"] = f"IQR is {self.spread:.0%} of the median"
        if self.run_queue_share is not None and self.run_queue_share >= CONTENTION_SHARE:
            remarks["CPU contention"] = f"runnable threads waited for a core {self.run_queue_share:.0%} of the time"
        if self.conditions is not None and self.conditions.throttled:
            shares = ", ".join(
                f"{reason} ({share:.0%} of readings)" for reason, share in self.conditions.throttled.items()
            )
            remarks["GPU throttled"] = shares
        return remarks


class MemoryPeak(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The peak memory of a call, in bytes.

    `added_bytes`: the peak of the memory that the call allocated, including its results.
    `resident_bytes`: the memory that was allocated when the call began. None on a CPU.
    `reserved_bytes`: the most memory that torch's GPU allocator has reserved so far. None on a CPU.
    `by`: the source of the numbers: "allocator" (torch's GPU allocator) or "tensors" (`LiveTensors`
    in `memory.py`).
    """

    added_bytes: int
    resident_bytes: int | None = None
    reserved_bytes: int | None = None
    by: Literal["allocator", "tensors"]


def merged_remarks(named: Iterable[tuple[str, Mapping[str, str]]]) -> Iterator[str]:
    """Yield one line per kind of remark, with the names of the measurements that have such a remark: "a, b: noisy".

    `named`: the name of each measurement and its `remarks_by_kind()`. The line also has the detail of the remark if the
    detail is equal for all these measurements.
    """
    names: dict[str, list[str]] = {}
    details: dict[str, set[str]] = {}
    for name, remarks in named:
        for kind, detail in remarks.items():
            names.setdefault(kind, []).append(name)
            details.setdefault(kind, set()).add(detail)
    for kind, with_it in names.items():
        (detail,) = details[kind] if len(details[kind]) == 1 else ("",)
        yield f"{', '.join(dict.fromkeys(with_it))}: {kind}" + (f": {detail}" if detail else "")


class Ratio(NamedTuple):
    """The ratio of two candidates' times: median, 10th and 90th percentile over `n` pairs of samples."""

    median: float
    p10: float
    p90: float
    n: int


def ratio(numerator: Measurement, denominator: Measurement) -> Ratio:
    """Return the time of `numerator` divided by the time of `denominator`, for each pair of samples.

    Both samples of a pair are from the same round of `clock.compare`, so that a disturbance of the machine affects both
    samples and not their ratio. Raises LLMBenchError if the two measurements have different numbers of samples, or if
    all times of `denominator` are 0.
    """
    if numerator.n != denominator.n:
        raise LLMBenchError(
            f"cannot pair {numerator.n} samples with {denominator.n} samples: they are not from one comparison"
        )
    pairs = [a / b for a, b in zip(numerator.samples_s, denominator.samples_s, strict=True) if b > 0]
    if not pairs:
        raise LLMBenchError("cannot compute a ratio to a time of zero")
    return Ratio(quantile(pairs, 0.5), quantile(pairs, 0.1), quantile(pairs, 0.9), len(pairs))


def quantile(values: Sequence[float], q: float) -> float:
    """Return the `q` quantile of the values (`q` from 0 to 1), with linear interpolation as in `numpy.quantile`."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
