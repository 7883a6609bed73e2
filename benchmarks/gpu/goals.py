"""The goals of the kernels, and the outcome of each goal, computed from a result file.

A goal is a bound on a ratio of two rates in one experiment: the rate of our kernel, divided by the rate of another
candidate or of a reference measurement. Both are timed in the same interleaved rounds. If the two calls do different
work (attention with a window and without a window, a kernel and a copy), each rate is computed from the work of its own
call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from llmbench.measure.measurement import NOISY_SPREAD, Measurement, Ratio, ratio
from llmbench.measure.results import Row

__all__ = [
    "COPY",
    "GOALS",
    "MATMUL",
    "OURS",
    "READ",
    "REFERENCES",
    "TESTS",
    "Goal",
    "Outcome",
    "judge",
    "missed",
    "verdicts",
]

OURS = "ours"
COPY, READ, MATMUL = "copy (B)", "read", "cuBLAS (G)"
"""The names of the reference measurements, which are timed like candidates: a copy of 1 GiB on the device, a sum over 1
GiB, and a bf16 matrix product of 8192³."""
REFERENCES = frozenset({COPY, READ, MATMUL})
TESTS = "tests"
"""The experiment name in the rows of test runs."""

By = Literal["time", "flops", "bytes", "memory"]
Verdict = Literal["moonshot", "pass", "MISS", "not yet", "–", "n/a", "INCORRECT", "FAILED"]


class Goal(NamedTuple):
    """A bound on our kernel in `experiment`, relative to `baseline`.

    - `by`: the quantity that is compared. "time": the times; both calls do the same work. "flops", "bytes": the rates,
      computed from the FLOPs or bytes of each call. "memory": the peak memory of our call without its results, as a
      share of the tensor that `baseline` names.
    - `must`: the bound that our kernel has to reach. `moonshot`: a more ambitious bound. If both are None, the table
      only shows the ratio.
    - `at_most`: whether the bounds are upper bounds on a time or on a share.
    """

    experiment: str
    baseline: str
    by: By = "time"
    must: float | None = None
    moonshot: float | None = None
    at_most: bool = False

    def text(self) -> str:
        """Return the name of the bounded quantity for the table."""
        if self.by == "memory":
            return f"extra memory / {self.baseline}"
        if self.at_most:
            return f"time / {self.baseline}" if self.by == "time" else f"time / {self.by} share of {self.baseline}"
        return f"speed-up over {self.baseline}" if self.by == "time" else f"share of {self.baseline}"

    def bound(self, value: float | None) -> str:
        """Return a bound as text, such as ≥ 1.25. Return a dash for None."""
        return "–" if value is None else f"{'≤' if self.at_most else '≥'} {value:g}"

    def meets(self, value: float, bound: float) -> bool:
        """Return whether a value is within a bound."""
        return value <= bound if self.at_most else value >= bound


def _attention() -> Iterator[Goal]:
    flash, cudnn, flex, causal = "sdpa-flash", "sdpa-cudnn", "flex", "own causal"
    yield Goal("attention D128 full forward", flash, must=1.25)
    yield Goal("attention D128 full forward", cudnn, must=0.68, moonshot=0.90)
    yield Goal("attention D128 causal forward", flash, must=1.15)
    yield Goal("attention D128 causal forward", cudnn, must=0.60, moonshot=0.90)
    for mask in ("full", "causal"):
        yield Goal(f"attention D64 {mask} forward", flash, must=1.2)
        yield Goal(f"attention D64 {mask} forward", cudnn, must=0.90, moonshot=1.1)
        yield Goal(f"attention D128 {mask} backward", flash, must=1.0)
        yield Goal(f"attention D128 {mask} backward", cudnn, must=0.50, moonshot=0.85)
        yield Goal(f"attention D64 {mask} backward", flash)
        yield Goal(f"attention D64 {mask} backward", cudnn)
    for direction in ("forward", "backward"):
        yield Goal(f"attention window {direction}", flex, must=1.0, moonshot=1.3)
        yield Goal(f"attention window {direction}", causal, "flops", must=1.25, at_most=True)
        yield Goal(f"attention ALiBi {direction}", flex, must=1.0, moonshot=1.3)
        yield Goal(f"attention ALiBi {direction}", causal, must=1.10, at_most=True)


def _memory_bound() -> Iterator[Goal]:
    yield Goal("GQA decode", "sdpa", must=2.0)
    for experiment in ("GQA decode", "GQA decode paged"):
        yield Goal(experiment, COPY, "bytes", must=0.80, moonshot=0.92)
        yield Goal(experiment, READ, "bytes")
    yield Goal("MLA decode 16 heads", COPY, "bytes", must=0.75, moonshot=0.88)
    yield Goal("MLA decode 16 heads", READ, "bytes")
    yield Goal("MLA decode 128 heads", MATMUL, "flops", must=0.45, moonshot=0.70)
    for norm in ("RMSNorm", "add+RMSNorm", "LayerNorm"):
        yield Goal(f"{norm} forward", COPY, "bytes", must=0.90, moonshot=0.97)
        yield Goal(f"{norm} forward", "torch.compile", must=0.97)
        yield Goal(f"{norm} backward", COPY, "bytes", must=0.70, moonshot=0.88)
        yield Goal(f"{norm} backward", "liger", must=1.5)
    for op in ("RoPE", "SwiGLU", "GEGLU"):
        for direction in ("forward", "backward"):
            yield Goal(f"{op} {direction}", COPY, "bytes", must=0.88, moonshot=0.95)


def _mixtures_and_loss() -> Iterator[Goal]:
    yield Goal("MoE forward", MATMUL, "flops", must=0.45, moonshot=0.65)
    yield Goal("MoE forward", "grouped_mm", must=1.2)
    yield Goal("MoE backward", MATMUL, "flops")
    yield Goal("MoE backward", "grouped_mm")
    yield Goal("MoE decode", COPY, "bytes", must=0.78, moonshot=0.92)
    yield Goal("MoE decode", READ, "bytes")
    both, forward = "linear cross-entropy both", "linear cross-entropy forward"
    yield Goal(both, "three products", must=0.80)
    yield Goal(both, "logits", "memory", must=1 / 8, at_most=True)
    yield Goal(both, "liger", must=1.0)
    yield Goal(forward, MATMUL, "flops", moonshot=0.85)
    # The goal is "no logits in HBM": the kernel may store partial sums of tiles, but it may not store rows of logits.
    yield Goal(forward, "logits", "memory", moonshot=0.01, at_most=True)


GOALS = (*_attention(), *_memory_bound(), *_mixtures_and_loss())
"""All goals, in the order of the table. The bounds were chosen for an H200, and they are the same on other GPUs."""


class Outcome(NamedTuple):
    """The outcome of a goal at one case.

    `value`: the measured ratio with its percentiles, or None. `note`: the reason why there is no value, or a reason to
    doubt the value.
    """

    goal: Goal
    shape: str
    value: Ratio | None
    verdict: Verdict
    note: str = ""


def judge(rows: Iterable[Row], goals: Iterable[Goal] = GOALS) -> list[Outcome]:
    """Compare the rows with the goals. Return one outcome per goal and case that has rows. For a goal without rows,
    return one "n/a" outcome."""
    cases: dict[str, dict[str, dict[str, Row]]] = {}
    for row in rows:
        case = cases.setdefault(row.experiment, {}).setdefault(str(row.case.get("shape", "–")), {})
        case[row.implementation] = row
    outcomes = []
    for goal in goals:
        begun = cases.get(goal.experiment, {})
        outcomes += [_outcome(goal, shape, row) for shape, row in begun.items()]
        if not begun:
            outcomes.append(Outcome(goal, "–", None, "n/a", "not begun"))
    return outcomes


def _outcome(goal: Goal, shape: str, rows: Mapping[str, Row]) -> Outcome:
    ours = rows.get(OURS)
    if ours is None or ours.measurement is None:
        status = ours.status if ours is not None else "n/a"
        verdict: Verdict = "INCORRECT" if status == "INCORRECT" else "FAILED" if status in ("FAILED", "OOM") else "n/a"
        return Outcome(goal, shape, None, verdict, (ours.reason if ours is not None else None) or "not measured")
    note = _doubts(ours.measurement)
    if goal.by == "memory":
        value = _extra_memory(ours)
        if value is None:
            return Outcome(goal, shape, None, "n/a", "memory is not measured on this device")
    else:
        other = rows.get(goal.baseline)
        if other is None or other.measurement is None:
            if other is None:
                return Outcome(goal, shape, None, "n/a", f"{goal.baseline}: not measured")
            failed = "" if other.status == "n/a" else f" {other.status}"
            return Outcome(goal, shape, None, "n/a", f"{goal.baseline}{failed}: {other.reason}")
        value = _rate_ratio(goal, ours, other)
    return Outcome(goal, shape, value, _verdict(goal, value.median), note)


def _doubts(measurement: Measurement) -> str:
    """Return the reasons to doubt a time: a throttled GPU, or noisy samples."""
    conditions = measurement.conditions
    throttled = (conditions.throttled if conditions is not None else None) or {}
    doubts = [f"throttled: {reason} {share:.0%}" for reason, share in throttled.items()]
    return "; ".join([*doubts, *([f"spread {measurement.spread:.0%}"] if measurement.spread >= NOISY_SPREAD else [])])


def _rate_ratio(goal: Goal, ours: Row, other: Row) -> Ratio:
    """Return our rate divided by the other candidate's rate, computed from pairs of samples. With `at_most`, return the
    inverse ratio."""
    assert ours.measurement is not None
    assert other.measurement is not None
    work = {"time": (1, 1), "flops": (ours.work_flops, other.work_flops), "bytes": (ours.work_bytes, other.work_bytes)}
    our_work, other_work = work[goal.by]
    assert our_work is not None
    assert other_work is not None
    if goal.at_most:
        times, scale = ratio(ours.measurement, other.measurement), other_work / our_work
    else:
        times, scale = ratio(other.measurement, ours.measurement), our_work / other_work
    return Ratio(times.median * scale, times.p10 * scale, times.p90 * scale, times.n)


def _extra_memory(ours: Row) -> Ratio | None:
    """Return the extra memory of a call as a share of the logits' bytes, or None if it is unknown. The extra memory is
    the peak memory of the call minus its results."""
    logits, results = (ours.extra.get(name) for name in ("logits_bytes", "results_bytes"))
    if ours.memory is None or not isinstance(logits, int) or not isinstance(results, int):
        return None
    share = (ours.memory.added_bytes - results) / logits
    return Ratio(share, share, share, 1)


def _verdict(goal: Goal, value: float) -> Verdict:
    if goal.moonshot is not None and goal.meets(value, goal.moonshot):
        return "moonshot"
    if goal.must is not None:
        return "pass" if goal.meets(value, goal.must) else "MISS"
    return "–" if goal.moonshot is None else "not yet"


def missed(rows: Sequence[Row]) -> set[str]:
    """Return the names of the experiments that must be measured again: a goal is missed, our kernel has no time, or any
    candidate is INCORRECT or FAILED."""
    latest = {row.key: row for row in rows}.values()
    again = {row.experiment for row in latest if row.status in ("INCORRECT", "FAILED")}
    again |= {row.experiment for row in latest if row.implementation == OURS and row.measurement is None}
    return again | {outcome.goal.experiment for outcome in judge(latest) if outcome.verdict == "MISS"}


def verdicts(outcomes: Iterable[Outcome]) -> dict[Verdict, int]:
    """Return the number of outcomes per verdict."""
    counts: dict[Verdict, int] = {}
    for outcome in outcomes:
        counts[outcome.verdict] = counts.get(outcome.verdict, 0) + 1
    return counts
