"""What a clock has read: raw samples, and the statistics that are made of them. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.measure.telemetry import Conditions

__all__ = ["ClockKind", "Measurement", "Ratio", "quantile", "ratio", "told"]

ClockKind = Literal["cpu", "cuda-events", "cuda-graph"]
"""`cpu`: a wall clock around calls. `cuda-events`: two events around one call, gaps between its launches included.
`cuda-graph`: two events around one replay of the call, captured as a graph: no gaps."""

WIDE = 0.10
"""A spread from here on is told."""

WAITED = 0.02
"""A share of waiting from here on is told."""


class Measurement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds of one call, sample by sample in the order in which they were taken; statistics are made of them.

    A sample is `calls_per_sample` calls, divided by their number. `cold`: nothing of the inputs was in the GPU's L2
    when it began. `threads` are those of torch on a CPU. `waited`: the share of the middle sample's time that threads
    were ready and had no core, because others had it; None on a GPU and where the system does not tell. `meeting_s`:
    seconds in which the threads met between the samples (see `measure.meeting`), the middle one; None of one thread and
    on a GPU. `conditions`: how the GPU fared meanwhile, None where nothing can tell. `notes`: what a reader must know
    before trusting the figures.
    """

    samples_s: tuple[float, ...]
    clock: ClockKind
    calls_per_sample: int = 1
    warmup_calls: int = 0
    cold: bool = False
    threads: int | None = None
    waited: float | None = None
    meeting_s: float | None = None
    conditions: Conditions | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # msgspec makes these a ValidationError with the place in a file
        if not self.samples_s:
            raise ValueError("a measurement has at least one sample")
        if not all(0 <= sample < math.inf for sample in self.samples_s):
            raise ValueError("samples are seconds: finite, and not negative")
        if self.waited is not None and not 0 <= self.waited <= 1:
            raise ValueError("waiting is a share")
        if self.meeting_s is not None and not 0 < self.meeting_s < math.inf:
            raise ValueError("a meeting takes seconds: finite, and more than none")

    @property
    def n(self) -> int:
        """How many samples there are."""
        return len(self.samples_s)

    @property
    def median_s(self) -> float:
        """The middle sample: the figure to quote."""
        return quantile(self.samples_s, 0.5)

    @property
    def p10_s(self) -> float:
        """A tenth of the samples is faster."""
        return quantile(self.samples_s, 0.1)

    @property
    def p90_s(self) -> float:
        """A tenth of the samples is slower."""
        return quantile(self.samples_s, 0.9)

    @property
    def iqr_s(self) -> float:
        """How far the middle half of the samples reaches."""
        return quantile(self.samples_s, 0.75) - quantile(self.samples_s, 0.25)

    @property
    def spread(self) -> float:
        """`iqr_s` as a share of the median; 0 where the median is."""
        return self.iqr_s / self.median_s if self.median_s else 0.0

    def remarks(self) -> tuple[str, ...]:
        """The notes, and what samples and conditions say themselves: a wide spread, a GPU held back."""
        return tuple(f"{kind}: {detail}" if detail else kind for kind, detail in self.remarks_by_kind().items())

    def remarks_by_kind(self) -> dict[str, str]:
        """What is remarkable, with what there is to say of it in this measurement."""
        found = dict.fromkeys(self.notes, "")
        if self.spread >= WIDE:
            found["wide spread"] = f"the middle half of the samples reaches over {self.spread:.0%} of the median"
        if self.waited is not None and self.waited >= WAITED:
            found["the CPU was shared"] = f"{self.waited:.0%} of the time went by waiting for a core"
        if self.conditions is not None and self.conditions.throttled:
            shares = ", ".join(f"{reason} ({share:.0%})" for reason, share in self.conditions.throttled.items())
            found["the GPU was held back"] = f"{shares} of the readings"
        return found


def told(named: Iterable[tuple[str, Mapping[str, str]]]) -> Iterator[str]:
    """Remarks by kind, each with what has it: "a, b: wide spread". A detail is told where all have the same."""
    names: dict[str, list[str]] = {}
    details: dict[str, set[str]] = {}
    for name, remarks in named:
        for kind, detail in remarks.items():
            names.setdefault(kind, []).append(name)
            details.setdefault(kind, set()).add(detail)
    for kind, of in names.items():
        (detail,) = details[kind] if len(details[kind]) == 1 else ("",)
        yield f"{', '.join(dict.fromkeys(of))}: {kind}" + (f": {detail}" if detail else "")


class Ratio(NamedTuple):
    """How many times as long one rival takes as another: the median over pairs of samples, and its spread."""

    median: float
    p10: float
    p90: float
    n: int


def ratio(of: Measurement, to: Measurement) -> Ratio:
    """Time of `of` over time of `to`, paired sample by sample: what slows the machine for a while slows both of a pair.

    Raises LLMBenchError where they were not taken in one comparison.
    """
    if of.n != to.n:
        raise LLMBenchError(f"samples of one comparison pair off; these are {of.n} and {to.n}")
    pairs = [a / b for a, b in zip(of.samples_s, to.samples_s, strict=True) if b > 0]
    if not pairs:
        raise LLMBenchError("nothing can be compared with a time of zero")
    return Ratio(quantile(pairs, 0.5), quantile(pairs, 0.1), quantile(pairs, 0.9), len(pairs))


def quantile(values: Sequence[float], q: float) -> float:
    """The value below which a share `q` of `values` lies, straight lines between neighbours (numpy's default)."""
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
