"""The goals of the kernels as data, and what a file of results says of them.

A goal is a ratio of two rates inside one experiment: ours over a rival's, or over that of a reference measurement timed
in the same interleaved rounds. Where work differs (a window beside the whole triangle, bytes beside a copy's) each rate
is that of its own work.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from llmbench.measure.measurement import NOISY_SPREAD, Measurement, Ratio, ratio
from llmbench.measure.results import Row

__all__ = ["COPY", "GOALS", "MATMUL", "OURS", "READ", "TESTS", "Goal", "Outcome", "judged", "verdicts"]

OURS = "ours"
COPY, READ, MATMUL = "copy (B)", "read", "cuBLAS (G)"
"""Anchors, timed as rivals are: a device copy of 1 GiB, a sum over 1 GiB, a bf16 product of 8192³."""
TESTS = "tests"
"""The experiment under which test runs are filed."""

By = Literal["time", "flops", "bytes", "memory"]
Verdict = Literal["moonshot", "pass", "MISS", "not yet", "–", "n/a", "INCORRECT", "FAILED"]


class Goal(NamedTuple):
    """A bound on ours of `experiment` beside `than`. `by`: the work of a rate ("time": both do the same), or "memory",
    which bounds what a call needs beside its results, as a share of what `than` names. `at_most`: the goal is written
    as a time (or a share) that ours may take, not as a rate. Without must and moonshot it is only shown."""

    experiment: str
    than: str
    by: By = "time"
    must: float | None = None
    moonshot: float | None = None
    at_most: bool = False

    def text(self) -> str:
        """What is bounded, for a reader."""
        if self.by == "memory":
            return f"extra memory / {self.than}"
        if self.at_most:
            return f"time / {self.than}" if self.by == "time" else f"time / {self.by} share of {self.than}"
        return f"× {self.than}" if self.by == "time" else f"of {self.than}"

    def bound(self, value: float | None) -> str:
        """A bound as it is written: ≥ 1.25."""
        return "–" if value is None else f"{'≤' if self.at_most else '≥'} {value:g}"

    def meets(self, value: float, bound: float) -> bool:
        """Whether a value is within a bound."""
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
    for way in ("forward", "backward"):
        yield Goal(f"attention window {way}", flex, must=1.0, moonshot=1.3)
        yield Goal(f"attention window {way}", causal, "flops", must=1.25, at_most=True)
        yield Goal(f"attention ALiBi {way}", flex, must=1.0, moonshot=1.3)
        yield Goal(f"attention ALiBi {way}", causal, must=1.10, at_most=True)


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
        for way in ("forward", "backward"):
            yield Goal(f"{op} {way}", COPY, "bytes", must=0.88, moonshot=0.95)


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
    # "no logits in HBM": partial sums of tiles are allowed, a stretch of logits is not
    yield Goal(forward, "logits", "memory", moonshot=0.01, at_most=True)


GOALS = (*_attention(), *_memory_bound(), *_mixtures_and_loss())
"""Every goal, in the order of the table. They are ratios for one H200; elsewhere they are as good as any."""


class Outcome(NamedTuple):
    """A goal at one case: `value` in the goal's own terms with its spread, None where there is none; `note` says why,
    or what must be known of it."""

    goal: Goal
    shape: str
    value: Ratio | None
    verdict: Verdict
    note: str = ""


def judged(rows: Iterable[Row], goals: Iterable[Goal] = GOALS) -> list[Outcome]:
    """What rows say of the goals: one outcome a goal and case that was begun, one "n/a" for a goal without any."""
    cases: dict[str, dict[str, dict[str, Row]]] = {}
    for row in rows:
        case = cases.setdefault(row.experiment, {}).setdefault(str(row.case.get("shape", "–")), {})
        case[row.implementation] = row
    found = []
    for goal in goals:
        begun = cases.get(goal.experiment, {})
        found += [_outcome(goal, shape, row) for shape, row in begun.items()]
        if not begun:
            found.append(Outcome(goal, "–", None, "n/a", "not begun"))
    return found


def _outcome(goal: Goal, shape: str, rows: Mapping[str, Row]) -> Outcome:
    ours = rows.get(OURS)
    if ours is None or ours.measurement is None:
        status = ours.status if ours is not None else "n/a"
        known: Verdict = "INCORRECT" if status == "INCORRECT" else "FAILED" if status in ("FAILED", "OOM") else "n/a"
        return Outcome(goal, shape, None, known, (ours.reason if ours is not None else None) or "not measured")
    note = _doubts(ours.measurement)
    if goal.by == "memory":
        value = _extra_memory(ours)
        if value is None:
            return Outcome(goal, shape, None, "n/a", "no allocator counts it here")
    else:
        other = rows.get(goal.than)
        if other is None or other.measurement is None:
            if other is None:
                return Outcome(goal, shape, None, "n/a", f"{goal.than}: not measured")
            failed = "" if other.status == "n/a" else f" {other.status}"
            return Outcome(goal, shape, None, "n/a", f"{goal.than}{failed}: {other.reason}")
        value = _rate_ratio(goal, ours, other)
    return Outcome(goal, shape, value, _verdict(goal, value.median), note)


def _doubts(measurement: Measurement) -> str:
    """What makes a time less certain: a GPU that was held back, samples far apart."""
    conditions = measurement.conditions
    throttled = (conditions.throttled if conditions is not None else None) or {}
    found = [f"throttled: {reason} {share:.0%}" for reason, share in throttled.items()]
    return "; ".join([*found, *([f"spread {measurement.spread:.0%}"] if measurement.spread >= NOISY_SPREAD else [])])


def _rate_ratio(goal: Goal, ours: Row, other: Row) -> Ratio:
    """Our rate over the other's, or (at_most) the other's over ours, pair by pair."""
    assert ours.measurement is not None
    assert other.measurement is not None
    work = {"time": (1, 1), "flops": (ours.work_flops, other.work_flops), "bytes": (ours.work_bytes, other.work_bytes)}
    mine, its = work[goal.by]
    assert mine is not None
    assert its is not None
    if goal.at_most:
        times, scale = ratio(ours.measurement, other.measurement), its / mine
    else:
        times, scale = ratio(other.measurement, ours.measurement), mine / its
    return Ratio(times.median * scale, times.p10 * scale, times.p90 * scale, times.n)


def _extra_memory(ours: Row) -> Ratio | None:
    """Bytes at the peak of a call less those of its results, over those of the logits."""
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


def verdicts(outcomes: Iterable[Outcome]) -> dict[Verdict, int]:
    """How often each verdict was given."""
    counts: dict[Verdict, int] = {}
    for outcome in outcomes:
        counts[outcome.verdict] = counts.get(outcome.verdict, 0) + 1
    return counts
