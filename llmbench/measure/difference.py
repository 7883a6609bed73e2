"""Two files of results side by side: what got slower, by more than the noise?

A pair of medians is judged by the logarithm of its ratio: as far up as down. What may move it for no reason is, in the
order of what it amounts to on a busy machine:

- others had the core: a median that waited for a share w of its time may be 1 / (1 - w) too long (`waited`);
- the machine was slower for a while: rivals of a case are timed side by side, so that this moves all of them. What all
  have moved, beyond what the whole sweep has, is no implementation's;
- the machine is slower today: the anchors of both sessions tell, which no change of ours moves;
- threads met slower: where the host has put two cores that share no cache, calls of several threads take up to twice
  as long, and that changes from second to second (`meeting`);
- what nothing tells: where memory and code lie, how high clocks went, neighbours on the same host (`FLOOR`);
- a median of n samples has an error of its own.

The first four are known and are added, each on the side to which it moves a row. The last two are chance and add as
squares, the error of the medians at so many standard deviations that one build, run twice, is almost never called
slower: the more rows, the more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import NormalDist
from typing import Literal, NamedTuple

from llmbench.errors import LLMBenchError
from llmbench.measure.measurement import Measurement
from llmbench.measure.results import Header, Key, Results, Row, differences

__all__ = ["FLOOR", "SEEN", "Change", "Difference", "Noise", "diff", "noise"]

SEEN = 1.3
"""A change of this size is to be seen. Where it cannot be ruled out, nothing is said to be the same."""

FLOOR = {"cpu": 0.10, "cuda-events": 0.05, "cuda-graph": 0.05}
"""By the clock, how far medians of two runs lie apart where nothing tells why, as a logarithm. A CPU: over 576 pairs of
rows in 36 pairs of runs on two shared cores, what is left without the common move of all rivals is 0.022 (root mean
square) and 0.066 at most; the order of linking or the size of the environment alone can do as much (Mytkowicz et al.
2009, "Producing wrong data without doing anything obviously wrong!"). A GPU: room for boost clocks and for boards of
one kind; not measured yet."""

FALSE_ALARMS = 0.005
"""Of sweeps of one build, those that the error of medians may turn red: half of the one in a hundred that all causes
together may."""

MEMORY_SHARE, MEMORY_BYTES = 0.05, 2**20
"""Peaks that grew by more than both are a regression: a count of bytes has no noise but that of the allocator's blocks
(of 512 bytes to 2 MiB) and of workspaces that a library chooses."""

FAULTS = ("INCORRECT", "FAILED")
"""Statuses of what is wrong; that something has no room, or does not exist here, is not."""

TOGETHER = 2.0
"""As far as rivals of a case are taken to move together for no reason of theirs: the longest disturbance seen on shared
cores. What moved all of them further is a change: of what they share, if of nothing else."""

MET = 2.5
"""As far as threads that met slower are taken to have slowed a call: of 50 ops the worst took 2.4 times as long."""

Verdict = Literal["slower", "faster", "same", "unclear", "broken", "mended", "new", "gone"]
Case = tuple[str, tuple[tuple[str, object], ...]]


class Change(NamedTuple):
    """A row before and after. `ratio`: time after over time before, None unless both have one; `noise`: how far from 1
    it may lie on that side without meaning anything, None where that is not known. "same": a change by `SEEN` is ruled
    out; "unclear": it is not. "broken": what had a time has none, or what was not wrong is; "mended": what had no time
    has one."""

    key: Key
    before: Row | None
    after: Row | None
    ratio: float | None
    noise: float | None
    verdict: Verdict

    @property
    def added_bytes(self) -> tuple[int, int] | None:
        """What the call added at its peak, before and after; None unless both are known."""
        if self.before is None or self.after is None or self.before.memory is None or self.after.memory is None:
            return None
        return self.before.memory.added_bytes, self.after.memory.added_bytes

    @property
    def peak_ratio(self) -> float | None:
        """After over before; None where that is not known, or was nothing before."""
        before, after = self.added_bytes or (0, 0)
        return after / before if before else None

    @property
    def heavier(self) -> bool:
        """Whether the peak grew."""
        before, after = self.added_bytes or (0, 0)
        return after - before > max(MEMORY_SHARE * before, MEMORY_BYTES)

    @property
    def worse(self) -> bool:
        """Whether it is a regression: of time, of memory, or of working at all."""
        return self.verdict in ("slower", "broken") or self.heavier


class Difference(NamedTuple):
    """Every row of either file, and what else differs: devices, versions, what the machine could do."""

    changes: list[Change]
    notes: list[str]

    @property
    def regressions(self) -> list[Change]:
        """What got slower, broke or takes more memory, the worst first."""
        worse = [change for change in self.changes if change.worse]
        return sorted(worse, key=lambda change: -(change.ratio or math.inf))


def diff(before: Results, after: Results) -> Difference:
    """Pair the rows of two files by experiment, case and implementation, in the order of `before`.

    Raises LLMBenchError where they have no row in common.
    """
    old, new = before.by_key(), after.by_key()
    both = {key: (old[key], new[key]) for key in old if key in new}
    if not both:
        raise LLMBenchError(
            f"{before.path} and {after.path} have no row in common",
            hint="rows pair by experiment, case and implementation: give two runs of one experiment and preset",
        )
    moved = {key: move for key, pair in both.items() if (move := _moved(*pair)) is not None}
    alike = _alike(moved)
    headers = before.headers_by_key(), after.headers_by_key()

    def change(key: Key) -> Change:
        was, now = old.get(key), new.get(key)
        if key not in moved or was is None or now is None or was.measurement is None or now.measurement is None:
            return Change(key, was, now, None, None, _of_statuses(was, now))
        known = alike[key[:2]], *_machine(was.measurement, *(each[key] for each in headers))
        found = noise(was.measurement, now.measurement, known=known, rows=len(moved))
        move = moved[key]
        edge = found.high if move > 0 else found.low
        within = abs(math.expm1(edge)) if math.isfinite(edge) else None
        return Change(key, was, now, math.exp(move), within, found.verdict(move))

    return Difference([change(key) for key in {**old, **new}], _notes(before, after, alike, list(both.values())))


class Noise(NamedTuple):
    """Moves from `low` to `high` have no meaning; logarithms, 0 is between them."""

    low: float
    high: float

    def verdict(self, move: float) -> Verdict:
        """Of a logarithm of time after over time before."""
        if not self.low <= move <= self.high:
            return "slower" if move > 0 else "faster"
        return "same" if max(move - self.low, self.high - move) < math.log(SEEN) else "unclear"


def noise(before: Measurement, after: Measurement, *, known: Iterable[float] = (), rows: int = 1) -> Noise:
    """How far apart two medians may lie for no reason.

    `known`: moves of the machine, as logarithms, each of which may have moved the row as far; `rows`: how many are
    judged together.
    """
    moves = [*known, _waiting(after), -_waiting(before), _meeting(before, after)]
    error = math.hypot(_error_of_median(before), _error_of_median(after))
    reach = _student(1 - FALSE_ALARMS / rows, EFFICIENCY * (before.n + after.n))
    chance = math.hypot(max(FLOOR[before.clock], FLOOR[after.clock]), reach * error)
    return Noise(sum(min(move, 0) for move in moves) - chance, sum(max(move, 0) for move in moves) + chance)


def _waiting(of: Measurement) -> float:
    """How much too long a median may be for waiting, as a logarithm."""
    return -math.log1p(-min(of.waited or 0.0, 0.99))


def _meeting(before: Measurement, after: Measurement) -> float:
    """How much slower threads met after than before, as a logarithm; 0 where they cannot be compared. No call has more
    of it than one that does nothing else, nor more than `MET`; how much of it a call has is not known."""
    if before.meeting_s is None or after.meeting_s is None or before.threads != after.threads:
        return 0.0
    move, most = math.log(after.meeting_s / before.meeting_s), math.log(MET)
    return max(-most, min(move, most))


EFFICIENCY = 0.37
"""Of the interquartile range: it tells as much of a normal spread as a standard deviation of so many of the samples."""


def _error_of_median(of: Measurement) -> float:
    """Standard error of the median as a share of it: 1.2533 σ / √n for what is normal in the middle, with σ from the
    reach of the middle half, IQR / 1.349, which tails do not move. Of a single sample nothing is known."""
    if of.n < 2:
        return math.inf
    return 1.2533 / 1.349 * of.spread / math.sqrt(of.n)


def _student(share: float, freedom: float) -> float:
    """The value below which a share of Student's t lies (Abramowitz and Stegun 26.7.5, three terms)."""
    z = NormalDist().inv_cdf(share)
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + (z**3 + z) / (4 * freedom) + second / freedom**2


def _moved(before: Row, after: Row) -> float | None:
    """Logarithm of time after over time before; None unless both have one."""
    return math.log(after.seconds / before.seconds) if before.seconds and after.seconds else None


def _alike(moved: Mapping[Key, float]) -> dict[Case, float]:
    """How far all rivals of each case have moved together, beyond what the sweep has.

    Together is what the one has that moved least, and nothing where they moved both ways, or one is alone. That of the
    sweep is the middle one of all cases: where everything moved, it is not taken for a passing disturbance. Nor is what
    is beyond `TOGETHER`.
    """
    most = math.log(TOGETHER)
    cases: dict[Case, list[float]] = {}
    for key, change in moved.items():
        cases.setdefault(key[:2], []).append(change)
    least = {case: _least(changes) for case, changes in cases.items()}
    ordered = sorted(least.values())
    middle = _least(ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]) if ordered else 0.0
    moved_together = {case: each - middle if len(cases[case]) > 1 else 0.0 for case, each in least.items()}
    return {case: max(-most, min(each, most)) for case, each in moved_together.items()}


def _least(changes: list[float]) -> float:
    """The one nearest to 0 of those that have one sign, else 0."""
    return max(min(changes), 0.0) + min(max(changes), 0.0)


def _machine(of: Measurement, before: Header | None, after: Header | None) -> tuple[float, float]:
    """How far anchors moved, down and up, as logarithms of their times: those that speak for such a row. Calls of a CPU
    mostly find their inputs in its caches, calls of a GPU do not; launches cost nothing within a graph."""
    if before is None or after is None or before.anchors is None or after.anchors is None:
        return 0.0, 0.0
    names = {"cpu": ("matmul", "launch"), "cuda-events": ("matmul", "copy", "read", "launch")}
    moves = [0.0]
    for name in names.get(of.clock, ("matmul", "copy", "read")):
        was, now = getattr(before.anchors, name), getattr(after.anchors, name)
        if was.what == now.what:
            moves.append(math.log(was.per_s / now.per_s))
    return min(moves), max(moves)


def _of_statuses(before: Row | None, after: Row | None) -> Verdict:
    if before is None or after is None:
        return "new" if before is None else "gone"
    if before.status == after.status:
        return "unclear" if before.status == "ok" else "same"  # a time of zero
    if "ok" in (before.status, after.status):
        return "broken" if before.status == "ok" else "mended"
    return "broken" if after.status in FAULTS and before.status not in FAULTS else "same"


def _notes(before: Results, after: Results, alike: Mapping[Case, float], both: list[tuple[Row, Row]]) -> list[str]:
    """What a reader must know beside the rows; of places, the last sessions'."""
    found = [
        f"{_several(len(each.damaged), 'damaged line')} in {each.path} left out"
        for each in (before, after)
        if each.damaged
    ]
    together = [abs(move) for move in alike.values() if abs(move) > math.log(SEEN) / 2]
    if together:
        cases, most = _several(len(together), "case"), math.exp(max(together))
        found.append(
            f"all rivals of {cases} moved alike, up to {most:.1f}×: taken for the machine, and for noise there; "
            "a change of what they share looks the same"
        )
    found += _meetings([(was.measurement, now.measurement) for was, now in both])
    if not before.headers or not after.headers:
        bare = ", ".join(each.path for each in (before, after) if not each.headers)
        return [*found, f"no header in {bare}: where it was measured is not known"]
    old, new = before.headers[-1], after.headers[-1]
    found += differences(old.environment, new.environment)
    if old.inputs != new.inputs:
        found.append("the inputs of the two sessions differ")
    if old.anchors and new.anchors:
        for name in ("matmul", "copy", "read", "launch"):
            was, now = getattr(old.anchors, name), getattr(new.anchors, name)
            ratio = was.per_s / now.per_s if was.what == now.what else 1.0
            if abs(math.log(ratio)) > FLOOR[was.measurement.clock]:
                found.append(f"the machine itself: {was.what} takes {ratio:.2f}× as long")
    return found


def _meetings(pairs: list[tuple[Measurement | None, Measurement | None]]) -> list[str]:
    """That threads met at another speed, if they did."""
    met = [abs(_meeting(was, now)) for was, now in pairs if was and now]
    apart = [move for move in met if move > math.log(SEEN) / 2]
    if not apart:
        return []
    return [
        f"threads met at another speed beside {len(apart)} of {len(met)} rows, up to {math.exp(max(apart)):.1f}×: "
        "part of the noise there; OMP_NUM_THREADS=1 leaves it out"
    ]


def _several(count: int, what: str) -> str:
    return f"1 {what}" if count == 1 else f"{count} {what}s"
