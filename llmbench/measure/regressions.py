"""Compare two result files, and find the rows that became slower by more than the noise.

A pair of medians is judged by the logarithm of their ratio, so that slow-downs and speed-ups are treated alike. The
code is not the only cause of a change. The other causes, in the order of their size on a busy machine:

- Run-queue delay: other processes used the core. If threads waited for a share w of the time, the median may be too
  long by a factor of 1 / (1 - w) (`run_queue_share`).
- A common change: the machine was slower for a while. The candidates of a case are timed side by side, so all of them
  become slower. If all candidates of a case changed by more than the whole sweep did, the cause is not one
  implementation.
- The whole session was slower. The reference measurements of both sessions show this; our code does not affect them.
- Barrier cost: the host has moved the threads to cores that share no cache. Multi-threaded calls then take up to twice
  as long, and this changes from second to second (`barrier_s`).
- Causes that are not recorded: memory and code layout, clock frequency, other guests of the host (`NOISE_FLOOR`).
- The sampling error of a median of n samples.

The first four are known and are added, each in its direction. The last two are random and are added as squares. The
sampling error is multiplied by a number of standard deviations, so that two runs of the same build almost never show a
regression. This number grows with the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Literal, NamedTuple

from llmbench.errors import LLMBenchError
from llmbench.measure.measurement import Measurement
from llmbench.measure.results import Header, Key, Results, Row, differences

__all__ = ["DETECTABLE", "NOISE_FLOOR", "Change", "Difference", "Noise", "diff", "noise"]

DETECTABLE = 1.3
"""The ratio that a comparison must be able to detect. A row is "same" only if such a change is ruled out."""

NOISE_FLOOR = {"cpu": 0.10, "cuda-events": 0.05, "cuda-graph": 0.05}
"""For each clock: the largest log ratio of the medians of two runs that needs no recorded cause.

CPU: over 576 pairs of rows in 36 pairs of runs on two shared cores, the changes minus the common change of their case
had a root mean square of 0.022 and a maximum of 0.066. The link order or the size of the environment variables alone
can cause as much (Mytkowicz et al. 2009, "Producing wrong data without doing anything obviously wrong!"). GPU: an
allowance for boost clocks and for differences between boards of one model; not measured yet."""

FALSE_ALARMS = 0.005
"""The largest share of comparisons of a build with itself in which the sampling error may report a regression. It is
half of the 1% that is allowed for all causes together."""

MEMORY_SHARE, MEMORY_BYTES = 0.05, 2**20
"""A memory peak that grew by more than both limits is a regression. Counted bytes have no noise, except for the
allocator's block sizes (512 bytes to 2 MiB) and the workspaces that a library chooses."""

FAULTS = ("INCORRECT", "FAILED")
"""Statuses of an error. "OOM" and "n/a" are not errors."""

MOST_COMMON_CHANGE = 2.0
"""The largest common change of a case that counts as noise: the largest disturbance seen on shared cores. The rest of a
larger change is attributed to the code that the candidates share."""

MOST_BARRIER_CHANGE = 2.5
"""The largest slow-down that slower barriers explain. Of 50 measured ops, the most affected took 2.4 times as long."""

Verdict = Literal["slower", "faster", "same", "unclear", "broken", "fixed", "new", "gone"]
Case = tuple[str, tuple[tuple[str, object], ...]]


class Change(NamedTuple):
    """One row before and after.

    `ratio`: time after divided by time before; None unless both rows have a time. `noise`: the largest relative change
    in that direction that is still noise; None if it is unknown. `verdict`: "same": the change is within the noise, and
    a change by `DETECTABLE` is ruled out; "unclear": the change is within the noise, and a change by `DETECTABLE` is
    possible; "broken": the row lost its time, or became an error; "fixed": the row gained a time.
    """

    key: Key
    before: Row | None
    after: Row | None
    ratio: float | None
    noise: float | None
    verdict: Verdict

    @property
    def added_bytes(self) -> tuple[int, int] | None:
        """The call's memory at its peak, before and after, in bytes; None unless both are known."""
        if self.before is None or self.after is None or self.before.memory is None or self.after.memory is None:
            return None
        return self.before.memory.added_bytes, self.after.memory.added_bytes

    @property
    def peak_ratio(self) -> float | None:
        """The peak after over the peak before; None if it is unknown or was 0 before."""
        before, after = self.added_bytes or (0, 0)
        return after / before if before else None

    @property
    def memory_grew(self) -> bool:
        """Whether the peak grew by more than `MEMORY_SHARE` and `MEMORY_BYTES`."""
        before, after = self.added_bytes or (0, 0)
        return after - before > max(MEMORY_SHARE * before, MEMORY_BYTES)

    @property
    def worse(self) -> bool:
        """Whether the row is a regression: slower, broken, or with a larger peak."""
        return self.verdict in ("slower", "broken") or self.memory_grew


class Difference(NamedTuple):
    """The changes of all rows of both files, and notes on the sessions: devices, versions, reference measurements."""

    changes: list[Change]
    notes: list[str]

    @property
    def regressions(self) -> list[Change]:
        """The rows that became slower, broke or need more memory, the worst first."""
        worse = [change for change in self.changes if change.worse]
        return sorted(worse, key=lambda change: -(change.ratio or math.inf))


def diff(before: Results, after: Results) -> Difference:
    """Pair the rows of two files by experiment, case and implementation, in the order of `before`, and judge each pair.

    Raises LLMBenchError if the files have no row in common.
    """
    old, new = before.by_key(), after.by_key()
    pairs = {key: (old[key], new[key]) for key in old if key in new}
    if not pairs:
        raise LLMBenchError(
            f"{before.path} and {after.path} have no row in common",
            hint="rows pair by experiment, case and implementation: give two runs of one experiment and preset",
        )
    changes = {key: log_ratio for key, pair in pairs.items() if (log_ratio := _log_ratio(*pair)) is not None}
    common = _common_changes(changes)
    headers = before.headers_by_key(), after.headers_by_key()

    def change(key: Key) -> Change:
        was, now = old.get(key), new.get(key)
        if key not in changes or was is None or now is None or was.measurement is None or now.measurement is None:
            return Change(key, was, now, None, None, _verdict_of_statuses(was, now))
        machine = _machine_change(was.measurement, *(by_key[key] for by_key in headers))
        interval = noise(was.measurement, now.measurement, known=(common[key[:2]], *machine), rows=len(changes))
        log_ratio = changes[key]
        edge = interval.high if log_ratio > 0 else interval.low
        tolerance = abs(math.expm1(edge)) if math.isfinite(edge) else None
        return Change(key, was, now, math.exp(log_ratio), tolerance, interval.verdict(log_ratio))

    notes = _notes(before, after, common, list(pairs.values()))
    return Difference([change(key) for key in {**old, **new}], notes)


class Noise(NamedTuple):
    """The log ratios from `low` to `high` are noise; 0 lies between them."""

    low: float
    high: float

    def verdict(self, log_ratio: float) -> Verdict:
        """Judge the logarithm of time after over time before."""
        if not self.low <= log_ratio <= self.high:
            return "slower" if log_ratio > 0 else "faster"
        farthest = max(log_ratio - self.low, self.high - log_ratio)
        return "same" if farthest < math.log(DETECTABLE) else "unclear"


def noise(before: Measurement, after: Measurement, *, known: Iterable[float] = (), rows: int = 1) -> Noise:
    """Return the interval in which two medians may differ without a change of the code.

    `known`: known changes of the machine as log ratios; each may have affected the row in full or not at all. `rows`:
    the number of rows judged together.
    """
    changes = [*known, _delay(after), -_delay(before), _barrier_change(before, after)]
    error = math.hypot(_error_of_median(before), _error_of_median(after))
    reach = _student_quantile(1 - FALSE_ALARMS / rows, EFFICIENCY * (before.n + after.n))
    random = math.hypot(max(NOISE_FLOOR[before.clock], NOISE_FLOOR[after.clock]), reach * error)
    return Noise(sum(min(change, 0) for change in changes) - random, sum(max(change, 0) for change in changes) + random)


def _delay(measurement: Measurement) -> float:
    """Return the factor by which run-queue delay may have lengthened a median, as a logarithm."""
    return -math.log1p(-min(measurement.run_queue_share or 0.0, 0.99))


def _barrier_change(before: Measurement, after: Measurement) -> float:
    """Return the log ratio of the barrier costs; 0 if they cannot be compared.

    It is the effect on a call that consists of barriers only, and so an upper bound for every call. The share of
    barriers in a real call is unknown. The result is limited to `MOST_BARRIER_CHANGE`.
    """
    if before.barrier_s is None or after.barrier_s is None or before.threads != after.threads:
        return 0.0
    log_ratio, most = math.log(after.barrier_s / before.barrier_s), math.log(MOST_BARRIER_CHANGE)
    return max(-most, min(log_ratio, most))


EFFICIENCY = 0.37
"""Efficiency of the interquartile range: from n samples it estimates the spread of a normal distribution as well as the
standard deviation does from 0.37 n samples."""


def _error_of_median(measurement: Measurement) -> float:
    """Return the standard error of the median as a share of the median: 1.2533 σ / √n, if the middle samples are
    normally distributed.

    σ = IQR / 1.349, which outliers do not change. The error is infinite for a single sample.
    """
    if measurement.n < 2:
        return math.inf
    return 1.2533 / 1.349 * measurement.spread / math.sqrt(measurement.n)


def _student_quantile(share: float, freedom: float) -> float:
    """Return the quantile of Student's t distribution (Abramowitz and Stegun 26.7.5, three terms)."""
    z = NormalDist().inv_cdf(share)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + (z**3 + z) / (4 * freedom) + second / freedom**2


def _log_ratio(before: Row, after: Row) -> float | None:
    """Return the logarithm of time after divided by time before; None unless both rows have a time."""
    return math.log(after.seconds / before.seconds) if before.seconds and after.seconds else None


def _common_changes(changes: Mapping[Key, float]) -> dict[Case, float]:
    """Return the common change of each case minus the common change of the whole sweep, as a log ratio.

    The common change of a case is the change of the row that changed least. It is 0 if rows changed in both directions
    or if the case has only one row. The common change of the sweep is the median over all cases. It is subtracted,
    because a change of all cases is not a passing disturbance. The result is limited to `MOST_COMMON_CHANGE`.
    """
    most = math.log(MOST_COMMON_CHANGE)
    cases: dict[Case, list[float]] = {}
    for key, change in changes.items():
        cases.setdefault(key[:2], []).append(change)
    least = {case: _least(of_case) for case, of_case in cases.items()}
    ordered = sorted(least.values())
    middle = _least(ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]) if ordered else 0.0
    common = {case: change - middle if len(cases[case]) > 1 else 0.0 for case, change in least.items()}
    return {case: max(-most, min(change, most)) for case, change in common.items()}


def _least(changes: list[float]) -> float:
    """Return the change nearest to 0 if all changes have the same sign, else 0."""
    return max(min(changes), 0.0) + min(max(changes), 0.0)


def _machine_change(measurement: Measurement, before: Header | None, after: Header | None) -> tuple[float, float]:
    """Return the most negative and the most positive change of the reference measurements' times, as log ratios.

    The row's clock decides which reference measurements count. Calls on a CPU mostly find their inputs in its caches,
    so copy and read do not count. In a CUDA graph launches cost nothing, so launch does not count.
    """
    was = before.reference_measurements if before is not None else None
    now = after.reference_measurements if after is not None else None
    if was is None or now is None:
        return 0.0, 0.0
    names = {"cpu": ("matmul", "launch"), "cuda-events": ("matmul", "copy", "read", "launch")}
    changes = [0.0]
    for name in names.get(measurement.clock, ("matmul", "copy", "read")):
        old, new = getattr(was, name), getattr(now, name)
        if old.description == new.description:
            changes.append(math.log(old.per_s / new.per_s))
    return min(changes), max(changes)


def _verdict_of_statuses(before: Row | None, after: Row | None) -> Verdict:
    """Judge a pair of which at least one row has no time."""
    if before is None or after is None:
        return "new" if before is None else "gone"
    if before.status == after.status:
        return "unclear" if before.status == "ok" else "same"  # two "ok" rows come here if a time is zero
    if "ok" in (before.status, after.status):
        return "broken" if before.status == "ok" else "fixed"
    return "broken" if after.status in FAULTS and before.status not in FAULTS else "same"


def _notes(before: Results, after: Results, common: Mapping[Case, float], pairs: list[tuple[Row, Row]]) -> list[str]:
    """Return notes for the reader of the rows. The environments of the last sessions of both files are compared."""
    notes = [
        f"{_counted(len(results.damaged), 'damaged line')} in {results.path} left out"
        for results in (before, after)
        if results.damaged
    ]
    notes += _note_of_common_changes(common)
    notes += _note_of_barriers([(was.measurement, now.measurement) for was, now in pairs])
    if not before.headers or not after.headers:
        bare = ", ".join(results.path for results in (before, after) if not results.headers)
        return [*notes, f"no header in {bare}: the machine and the inputs are unknown"]
    old, new = before.headers[-1], after.headers[-1]
    notes += differences(old.environment, new.environment)
    if old.inputs != new.inputs:
        notes.append("the two sessions have different inputs")
    if old.reference_measurements and new.reference_measurements:
        for name in ("matmul", "copy", "read", "launch"):
            was, now = getattr(old.reference_measurements, name), getattr(new.reference_measurements, name)
            ratio = was.per_s / now.per_s if was.description == now.description else 1.0
            if abs(math.log(ratio)) > NOISE_FLOOR[was.measurement.clock]:
                notes.append(f"reference measurement: {was.description} takes {ratio:.2f}× as long")
    return notes


def _note_of_common_changes(common: Mapping[Case, float]) -> list[str]:
    """Return a note if all implementations of some cases changed together by a noticeable amount."""
    noticeable = [change for change in common.values() if abs(change) > math.log(DETECTABLE) / 2]
    if not noticeable:
        return []
    cases, most = _counted(len(noticeable), "case"), math.exp(max(abs(change) for change in noticeable))
    direction = "slower" if min(noticeable) > 0 else "faster" if max(noticeable) < 0 else "slower or faster"
    return [
        f"in {cases} every implementation became {direction} together (up to {most:.1f}×). "
        "This is treated as machine noise; a change in shared code would look the same"
    ]


def _note_of_barriers(pairs: list[tuple[Measurement | None, Measurement | None]]) -> list[str]:
    """Return a note if the barrier cost of some rows differs by a noticeable amount."""
    changes = [abs(_barrier_change(was, now)) for was, now in pairs if was and now]
    noticeable = [change for change in changes if change > math.log(DETECTABLE) / 2]
    if not noticeable:
        return []
    return [
        f"barrier cost (thread synchronisation) differs between the runs for {len(noticeable)} of {len(changes)} rows "
        f"(up to {math.exp(max(noticeable)):.1f}×); it is counted as noise. OMP_NUM_THREADS=1 avoids it"
    ]


def _counted(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"
