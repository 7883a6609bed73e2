"""Compare two result files, and find the rows that became slower by more than the noise.

The change of a row is the logarithm of the ratio of its two medians, so that slow-downs and speed-ups are treated
alike. A change has several causes besides the code. On a busy machine, these causes are, the largest first:

- Run-queue delay: other processes used the cores. If threads waited for a share w of the time, the median may be too
  long by a factor of 1 / (1 - w) (`run_queue_share`).
- Common change of a case: the machine was slower for a while. The candidates of a case are timed in turn, so all
  candidates of the case become slower. If all of them changed more than the candidates of other cases did, the cause
  is the machine, and not one implementation.
- Slow session: the machine was slower for the whole session. The reference measurements of both sessions show this
  change, because they do not run the code that is compared.
- Barrier cost: the host of a virtual machine has moved the threads to cores that share no cache. Then multi-threaded
  calls take up to twice as long. The barrier cost can change every second (`barrier_s`).
- Unrecorded causes: memory and code layout, clock frequency, other guests of the host (`NOISE_FLOOR`).
- Sampling error: the standard error of a median of n samples.

The noise is an interval of changes. The first four causes are measured. Each of the four widens the interval in the
direction of its change. The last two causes are random. They widen the interval on both sides by the root of the sum of
their squares. The sampling error is multiplied by a quantile that grows with the number of rows, so that two runs of
the same build almost never show a regression.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import NormalDist
from typing import Literal, NamedTuple

from llmbench.errors import LLMBenchError
from llmbench.measure.measurement import Measurement
from llmbench.measure.results import Header, Key, Results, Row, differences
from llmbench.printable import printable

__all__ = ["DETECTABLE", "NOISE_FLOOR", "Change", "Difference", "Noise", "diff", "noise"]

DETECTABLE = 1.3
"""The ratio of times that a comparison must detect. A row is "same" only if the noise cannot hide such a change."""

NOISE_FLOOR = {"cpu": 0.10, "cuda-events": 0.05, "cuda-graph": 0.05}
"""For each clock: the largest change between two runs that unrecorded causes explain, as the log ratio of the medians.

CPU: we compared 576 pairs of rows from 36 pairs of runs on two shared cores. We subtracted from each change the common
change of its case (see the top of this file). The remaining changes had a root mean square of 0.022 and a maximum of
0.066. The link order or the size of the environment variables alone can cause such changes (Mytkowicz et al. 2009,
"Producing wrong data without doing anything obviously wrong!"). GPU: an estimate for boost clocks and for differences
between boards of one model; not measured yet."""

FALSE_ALARMS = 0.005
"""The largest share of false alarms from the sampling error, among comparisons of a build with itself. A false alarm is
a comparison that reports a regression. All causes together may produce twice this share (1%)."""

MEMORY_SHARE, MEMORY_BYTES = 0.05, 2**20
"""A row is a regression if its memory peak grew by more than both limits. The counted bytes vary only with the block
sizes of the allocator (512 bytes to 2 MiB) and with the workspaces that libraries choose."""

FAULTS = ("INCORRECT", "FAILED")
"""The statuses of rows with an error. "OOM" and "n/a" do not count as errors."""

MOST_COMMON_CHANGE = 2.0
"""A limit for the common change of a case, as a ratio of times. The common change counts as noise up to this limit,
which is the largest disturbance that we saw on shared cores. A larger change may come from code that all candidates of
the case use, so the part above the limit does not count as noise."""

MOST_BARRIER_CHANGE = 2.5
"""The largest slow-down that barrier cost can cause. The most affected of 50 measured ops took 2.4 times as long."""

MOST_NAMED = 4
"""The largest number of differences that a message names."""

Verdict = Literal["slower", "faster", "same", "unclear", "broken", "fixed", "new", "gone", "untimed"]
Case = tuple[str, tuple[tuple[str, object], ...]]


class Change(NamedTuple):
    """The change of one row between two files: before and after.

    `ratio`: time after / time before; None unless both rows have a time.
    `noise`: the largest relative change that can be noise, in the direction of `ratio`; None if unknown.
    `verdict`: one of
        "slower", "faster": the change is larger than the noise.
        "same": the change is within the noise. The noise is too small to hide a change of time by the factor
            `DETECTABLE`.
        "unclear": the change is within the noise. The noise could hide a change of time by the factor `DETECTABLE`.
        "broken": only the row before has a time, or only the row after has an error.
        "fixed": only the row after has a time.
        "new", "gone": only the file after, or only the file before, has the row.
        "untimed": neither row has a time, and the row is not "broken".
    """

    key: Key
    before: Row | None
    after: Row | None
    ratio: float | None
    noise: float | None
    verdict: Verdict

    @property
    def row(self) -> Row:
        """The row after the change, or the row before if only the file before has it."""
        row = self.after or self.before
        assert row is not None
        return row

    @property
    def added_bytes(self) -> tuple[int, int] | None:
        """The peaks of the call's added memory before and after, in bytes; None unless both peaks are known."""
        if self.before is None or self.after is None or self.before.memory is None or self.after.memory is None:
            return None
        return self.before.memory.added_bytes, self.after.memory.added_bytes

    @property
    def peak_ratio(self) -> float | None:
        """Memory peak after / memory peak before. None if a peak is unknown, or if the peak before is 0."""
        before, after = self.added_bytes or (0, 0)
        return after / before if before else None

    @property
    def memory_grew(self) -> bool:
        """Whether the memory peak grew by more than `MEMORY_SHARE` and by more than `MEMORY_BYTES`."""
        before, after = self.added_bytes or (0, 0)
        return after - before > max(MEMORY_SHARE * before, MEMORY_BYTES)

    @property
    def worse(self) -> bool:
        """Whether the row is a regression: it is slower or broken, or its memory peak grew."""
        return self.verdict in ("slower", "broken") or self.memory_grew


class Difference(NamedTuple):
    """The changes of all rows in two files, and notes on the sessions: devices, versions, reference measurements."""

    changes: list[Change]
    notes: list[str]

    @property
    def regressions(self) -> list[Change]:
        """The rows that became slower, broke or need more memory. The row with the largest ratio comes first."""
        worse = [change for change in self.changes if change.worse]
        return sorted(worse, key=lambda change: -(change.ratio or math.inf))


LARGEST = 700.0
"""The largest logarithm of a ratio that is written. exp of more than 709 is no number of fp64."""


def diff(before: Results, after: Results) -> Difference:
    """Compare each row of `before` with the row of `after` that has the same experiment, case and implementation.

    The changes stand in the order of `before`, followed by the rows that only `after` has. Raises LLMBenchError if the
    files have no row in common.
    """
    old, new = before.by_key(), after.by_key()
    pairs = {key: (old[key], new[key]) for key in old if key in new}
    if not pairs:
        raise LLMBenchError(
            f"{before.path} and {after.path} have no row in common{_unlike(before, after)}",
            hint="rows are compared if experiment, case and implementation are equal: give two runs of one experiment "
            "and preset",
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
        tolerance = abs(math.expm1(edge)) if abs(edge) < LARGEST else None
        return Change(key, was, now, math.exp(min(log_ratio, LARGEST)), tolerance, interval.verdict(log_ratio))

    notes = _notes(before, after, common, list(pairs.values()))
    return Difference([change(key) for key in {**old, **new}], notes)


def _unlike(before: Results, after: Results) -> str:
    """Return what differs between two files without a common row: the inputs, or else the rows. "": nothing alone."""
    found: list[tuple[str, list[tuple[object, ...]]]] = []
    inputs = [dict(results.headers[0].inputs) if results.headers else {} for results in (before, after)]
    for name in inputs[0]:
        values: list[tuple[object, ...]] = [(own.get(name),) for own in inputs]
        if name != "spec" and values[0] != values[1]:  # `spec` is the digest of the model and its changes
            found.append((name, values))
    if not found:
        for name in dict.fromkeys(name for row in before.rows for name in _identity(row)):
            values = [tuple(dict.fromkeys(_identity(row).get(name) for row in own.rows)) for own in (before, after)]
            if not set(values[0]) & set(values[1]):
                found.append((name, values))
    texts = [f"{name}: {_listed(old)} → {_listed(new)}" for name, (old, new) in found[:MOST_NAMED]]
    return f" ({'; '.join(texts)})" if texts else ""


def _identity(row: Row) -> dict[str, object]:
    """Return the fields by which a row is compared."""
    return {"experiment": row.experiment, **row.case, "implementation": row.implementation}


def _listed(values: Sequence[object]) -> str:
    texts = ["none" if value in (None, [], "") else printable(str(value), most=60) for value in values[:MOST_NAMED]]
    return ", ".join(texts) + (", …" if len(values) > MOST_NAMED else "")


class Noise(NamedTuple):
    """An interval of log ratios that count as noise. `low` is at most 0, and `high` is at least 0."""

    low: float
    high: float

    def verdict(self, log_ratio: float) -> Verdict:
        """Return the verdict on a change. `log_ratio`: the logarithm of (time after / time before)."""
        if not self.low <= log_ratio <= self.high:
            return "slower" if log_ratio > 0 else "faster"
        farthest = max(log_ratio - self.low, self.high - log_ratio)
        return "same" if farthest < math.log(DETECTABLE) else "unclear"


def noise(before: Measurement, after: Measurement, *, known: Iterable[float] = (), rows: int = 1) -> Noise:
    """Return the interval of changes that two medians of unchanged code can show.

    `known`: known changes of the machine, as log ratios. Each change may affect the row fully, in part or not at all.
    `rows`: the number of rows in the comparison.
    """
    changes = [*known, _delay(after), -_delay(before), _barrier_change(before, after)]
    error = math.hypot(_error_of_median(before), _error_of_median(after))
    reach = _student_quantile(1 - FALSE_ALARMS / rows, EFFICIENCY * (before.n + after.n))
    random = math.hypot(max(NOISE_FLOOR[before.clock], NOISE_FLOOR[after.clock]), reach * error)
    return Noise(sum(min(change, 0) for change in changes) - random, sum(max(change, 0) for change in changes) + random)


def _delay(measurement: Measurement) -> float:
    """Return the logarithm of the factor by which run-queue delay can have lengthened a median."""
    return -math.log1p(-min(measurement.run_queue_share or 0.0, 0.99))


def _barrier_change(before: Measurement, after: Measurement) -> float:
    """Return the log ratio of the two barrier costs, limited to `MOST_BARRIER_CHANGE`; 0 if the two costs cannot be
    compared.

    The time of a call that consists only of barriers changes by this ratio. The share of barriers in a real call is
    unknown, so the ratio is an upper bound for the change of the call.
    """
    if before.barrier_s is None or after.barrier_s is None or before.threads != after.threads:
        return 0.0
    log_ratio, most = math.log(after.barrier_s / before.barrier_s), math.log(MOST_BARRIER_CHANGE)
    return max(-most, min(log_ratio, most))


EFFICIENCY = 0.37
"""The efficiency of the interquartile range. The interquartile range of n samples estimates the spread of a normal
distribution as precisely as the standard deviation of 0.37 n samples."""


def _error_of_median(measurement: Measurement) -> float:
    """Return the standard error of the median as a share of the median: 1.2533 σ / √n for n normal samples.

    σ is estimated as IQR / 1.349, because outliers do not change the interquartile range (IQR). The error is infinite
    for a single sample.
    """
    if measurement.n < 2:
        return math.inf
    return 1.2533 / 1.349 * measurement.spread / math.sqrt(measurement.n)


def _student_quantile(share: float, freedom: float) -> float:
    """Return the `share` quantile of Student's t distribution with `freedom` degrees of freedom.

    Source: Abramowitz and Stegun 26.7.5, with three terms.
    """
    z = NormalDist().inv_cdf(share)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + (z**3 + z) / (4 * freedom) + second / freedom**2


def _log_ratio(before: Row, after: Row) -> float | None:
    """Return the logarithm of (time after / time before), or None unless both rows have a time."""
    return math.log(after.seconds / before.seconds) if before.seconds and after.seconds else None


def _common_changes(changes: Mapping[Key, float]) -> dict[Case, float]:
    """Return the common change of each case, as a log ratio. A positive number means slower.

    The least change of a case is the change of the row that changed least. If some rows of the case became slower and
    others faster, the least change is 0. The common change of a case is the least change of the case, minus the median
    of the least changes of all cases. The median is subtracted, because a short disturbance of the machine does not
    change most cases. The common change is 0 for a case with only one row. It is limited to `MOST_COMMON_CHANGE`.
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
    """Return the change that is nearest to 0 if all changes have the same sign, else 0."""
    return max(min(changes), 0.0) + min(max(changes), 0.0)


def _machine_change(measurement: Measurement, before: Header | None, after: Header | None) -> tuple[float, float]:
    """Return the smallest and the largest change of the reference measurements' times, as log ratios.

    The smallest change is at most 0, and the largest change is at least 0. The clock of the row decides which reference
    measurements count. On a CPU, `copy` and `read` do not count, because the inputs of most calls are in the CPU's
    caches. For a CUDA graph, `launch` does not count, because a replay has no launches of single kernels.
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
    """Return the verdict on a pair in which at least one row has no time."""
    if before is None or after is None:
        return "new" if before is None else "gone"
    if before.status == after.status:
        return "unclear" if before.status == "ok" else "untimed"  # if both rows are "ok", a time is 0
    if "ok" in (before.status, after.status):
        return "broken" if before.status == "ok" else "fixed"
    return "broken" if after.status in FAULTS and before.status not in FAULTS else "untimed"


def _notes(before: Results, after: Results, common: Mapping[Case, float], pairs: list[tuple[Row, Row]]) -> list[str]:
    """Return notes on both files: damaged lines, noise of the machine, and differences between the last sessions."""
    notes = [
        f"{_counted(len(results.damaged), 'damaged line')} of {results.path} left out"
        for results in (before, after)
        if results.damaged
    ]
    notes += _note_of_common_changes(common)
    notes += _note_of_barriers([(was.measurement, now.measurement) for was, now in pairs])
    if not before.headers or not after.headers:
        bare = ", ".join(results.path for results in (before, after) if not results.headers)
        return [*notes, f"no header in {bare}: the machine and the inputs of the run are unknown"]
    old, new = before.headers[-1], after.headers[-1]
    notes += differences(old.environment, new.environment)
    if old.inputs != new.inputs:
        notes.append("the two sessions have different inputs")
    if old.reference_measurements and new.reference_measurements:
        for name in ("matmul", "copy", "read", "launch"):
            was, now = getattr(old.reference_measurements, name), getattr(new.reference_measurements, name)
            ratio = was.per_s / now.per_s if was.description == now.description else 1.0
            if abs(math.log(ratio)) > NOISE_FLOOR[was.measurement.clock]:
                notes.append(f"reference measurement: {was.description} takes {ratio:.2f}× as long in the second file")
    return notes


def _note_of_common_changes(common: Mapping[Case, float]) -> list[str]:
    """Return a note if there are cases in which all implementations became slower, or faster, by a noticeable ratio.

    The ratio is relative to the other cases (see `_common_changes`), so it is not a ratio of times in the table.
    """
    noticeable = [change for change in common.values() if abs(change) > math.log(DETECTABLE) / 2]
    if not noticeable:
        return []
    cases, most = _counted(len(noticeable), "case"), math.exp(max(abs(change) for change in noticeable))
    direction = "slower" if min(noticeable) > 0 else "faster" if max(noticeable) < 0 else "slower or faster"
    return [
        f"compared with the other cases, the candidates of {cases} became {direction} together, by up to {most:.1f}×. "
        "This part of their change counts as noise of the machine; a change in shared code would look the same"
    ]


def _note_of_barriers(pairs: list[tuple[Measurement | None, Measurement | None]]) -> list[str]:
    """Return a note if there are rows whose barrier cost changed by a noticeable ratio."""
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
