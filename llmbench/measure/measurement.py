"""A measurement: the raw samples of a call and their statistics. This module imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.measure.telemetry import Conditions

__all__ = ["ClockKind", "Measurement", "Ratio", "merged_remarks", "quantile", "ratio"]

ClockKind = Literal["cpu", "cuda-events", "cuda-graph"]
"""`cpu`: a wall clock around several calls. `cuda-events`: two events around one call; the time includes the gaps
between its launches. `cuda-graph`: two events around one replay of the call as a CUDA graph, which has no such gaps."""

NOISY_SPREAD = 0.10
"""A measurement with at least this spread gets the remark "noisy"."""

CONTENTION_SHARE = 0.02
"""A measurement with at least this run-queue share gets the remark "CPU contention"."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The time of one call: samples in seconds, in the order in which they were taken, and statistics of the samples.

    A sample times `calls_per_sample` calls and is divided by their number. `cold`: whether the GPU's L2 cache was
    emptied before each sample. `threads`: the number of torch's threads on a CPU. `run_queue_share`: the share of a
    sample's time that runnable threads waited for a core, median over the samples; None on a GPU, and if the system
    does not count it. `barrier_s`: the barrier cost in seconds, median of one reading per sample (see `measure.cpu`);
    None for one thread and on a GPU. `conditions`: the GPU's state during the measurement; None if it is unknown.
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
        # msgspec turns a ValueError into a ValidationError that names the place in the file.
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
        """The median in seconds: the figure to quote."""
        return quantile(self.samples_s, 0.5)

    @property
    def p10_s(self) -> float:
        """The 10th percentile in seconds."""
        return quantile(self.samples_s, 0.1)

    @property
    def p90_s(self) -> float:
        """The 90th percentile in seconds."""
        return quantile(self.samples_s, 0.9)

    @property
    def iqr_s(self) -> float:
        """The interquartile range in seconds."""
        return quantile(self.samples_s, 0.75) - quantile(self.samples_s, 0.25)

    @property
    def spread(self) -> float:
        """The interquartile range as a share of the median; 0 if the median is 0."""
        return self.iqr_s / self.median_s if self.median_s else 0.0

    def remarks(self) -> tuple[str, ...]:
        """Return the notes, and a remark if the samples are noisy, the CPU was contended or the GPU was throttled."""
        return tuple(f"{kind}: {detail}" if detail else kind for kind, detail in self.remarks_by_kind().items())

    def remarks_by_kind(self) -> dict[str, str]:
        """Return the remarks as kind → detail."""
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


def merged_remarks(named: Iterable[tuple[str, Mapping[str, str]]]) -> Iterator[str]:
    """Yield one line per kind of remark, with the names of the measurements that have it: "a, b: noisy". The detail of
    the remark is added if it is the same for all of them."""
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
    """Time of one candidate divided by the time of another: median and percentiles over `n` pairs of samples."""

    median: float
    p10: float
    p90: float
    n: int


def ratio(of: Measurement, to: Measurement) -> Ratio:
    """Return the time of `of` divided by the time of `to`, computed from pairs of samples.

    Samples are paired because a disturbance of the machine affects both samples of a pair. Raises LLMBenchError if the
    two were not taken in one comparison.
    """
    if of.n != to.n:
        raise LLMBenchError(f"cannot pair {of.n} samples with {to.n}: they are not from one comparison")
    pairs = [a / b for a, b in zip(of.samples_s, to.samples_s, strict=True) if b > 0]
    if not pairs:
        raise LLMBenchError("cannot compute a ratio to a time of zero")
    return Ratio(quantile(pairs, 0.5), quantile(pairs, 0.1), quantile(pairs, 0.9), len(pairs))


def quantile(values: Sequence[float], q: float) -> float:
    """Return the `q` quantile (0 to 1), interpolated linearly between neighbours as numpy does by default."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
