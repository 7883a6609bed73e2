"""Each goal can be measured, and rows with known times give the ratios of the goals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.gpu.experiments import EXPERIMENTS, chosen
from benchmarks.gpu.goals import COPY, GOALS, MATMUL, OURS, Goal, Outcome, judge
from llmbench.errors import UnknownNameError
from llmbench.measure.measurement import Measurement, MemoryPeak
from llmbench.measure.results import Row
from llmbench.measure.telemetry import Conditions


def row(implementation: str, *samples_s: float, case: str = "rows=4", **more: Any) -> Row:
    """A row with these samples; without samples, an n/a row."""
    timed = Measurement(samples_s=samples_s, clock="cuda-events") if samples_s else None
    common: dict[str, Any] = {"experiment": "x", "case": {"shape": case}, "implementation": implementation}
    if timed is None:
        return Row(**({"status": "n/a", "reason": "not here"} | common | more))
    return Row(**({"status": "ok", "measurement": timed} | common | more))


def outcome(goal: Goal, *rows: Row) -> Outcome:
    (outcome,) = judge(rows, [goal])
    return outcome


def test_every_goal_is_measured_and_every_experiment_has_one() -> None:
    candidates = {
        experiment.name: {candidate.name for candidate in experiment.candidates} for experiment in EXPERIMENTS
    }
    assert len(candidates) == len(EXPERIMENTS)
    for goal in GOALS:
        assert goal.by == "memory" or goal.baseline in candidates[goal.experiment], goal
        if goal.must is not None and goal.moonshot is not None:
            assert goal.meets(goal.moonshot, goal.must), goal
    assert set(candidates) == {goal.experiment for goal in GOALS}
    assert all(experiment.candidates[0].name == OURS for experiment in EXPERIMENTS)


def test_shapes_are_large_enough_for_the_goals() -> None:
    """Sequences are long, caches and weights are far larger than an L2, and few tokens stream the weights."""
    by_name = {experiment.name: experiment for experiment in EXPERIMENTS}
    for experiment in EXPERIMENTS:
        costs = [experiment.kernel.cost(case, torch.bfloat16) for case in experiment.cases]
        if experiment.kernel.name == "attention":
            assert all(case.queries == case.keys >= 8192 for case in experiment.cases)
        elif "cross-entropy" not in experiment.name:
            assert all(cost.bytes >= 2**28 for cost in costs), experiment.name
    assert by_name["attention window forward"].cases[0].window == 1024
    assert all(case.tokens <= 256 for case in by_name["MoE decode"].cases)
    assert by_name["MoE forward"].cases[0].tokens >= 8192


def test_experiments_are_chosen_by_words() -> None:
    assert [experiment.name for experiment in chosen(["moe f", "rope"])] == [
        "RoPE forward",
        "RoPE backward",
        "MoE forward",
    ]
    assert len(chosen([])) == len(EXPERIMENTS)
    with pytest.raises(UnknownNameError, match="no experiment has `ropes`"):
        chosen(["ropes"])


def test_a_speed_up_is_computed_pair_by_pair() -> None:
    """Both take twice as long in the second round, which does not change the ratio."""
    rows = row(OURS, 1.0, 2.0, 1.0), row("flash", 1.3, 2.6, 1.3)
    result = outcome(Goal("x", "flash", must=1.25), *rows)
    assert result.value is not None
    assert (result.value.median, result.value.p10, result.value.p90) == pytest.approx((1.3, 1.3, 1.3))
    assert result.verdict == "pass"
    assert outcome(Goal("x", "flash", must=1.31), *rows).verdict == "MISS"
    assert outcome(Goal("x", "flash", must=1.0, moonshot=1.3), *rows).verdict == "moonshot"
    assert outcome(Goal("x", "flash", moonshot=1.4), *rows).verdict == "not yet"
    assert outcome(Goal("x", "flash"), *rows).verdict == "–"


def test_a_share_compares_rates() -> None:
    """3 GB in 1 s and 8 GB in 2 s; 5 TFLOP in 1 s and 10 TFLOP in 1.6 s."""
    ours = row(OURS, 1.0, work_bytes=3 * 10**9, work_flops=5 * 10**12)
    copy, matmul = row(COPY, 2.0, work_bytes=8 * 10**9), row(MATMUL, 1.6, work_flops=10 * 10**12)
    shares = [outcome(Goal("x", COPY, "bytes"), ours, copy), outcome(Goal("x", MATMUL, "flops"), ours, matmul)]
    assert [share.value and share.value.median for share in shares] == pytest.approx([0.75, 0.8])


def test_a_windows_time_is_compared_with_its_share_of_the_flops() -> None:
    """A tenth of the FLOPs takes an eighth of the time: 1.25 times its share."""
    goal = Goal("x", "own causal", "flops", must=1.25, at_most=True)
    result = outcome(goal, row(OURS, 1.0, work_flops=10), row("own causal", 8.0, work_flops=100))
    assert result.value is not None
    assert result.value.median == pytest.approx(1.25)
    slower = outcome(goal, row(OURS, 1.1, work_flops=10), row("own causal", 8.0, work_flops=100))
    assert (result.verdict, slower.verdict) == ("pass", "MISS")


def test_memory_without_the_results() -> None:
    """A peak of 1,300 bytes, of which 300 are gradients, and logits of 8,000 bytes."""
    ours = row(
        OURS,
        1.0,
        memory=MemoryPeak(added_bytes=1300, by="allocator"),
        extra={"logits_bytes": 8000, "results_bytes": 300},
    )
    result = outcome(Goal("x", "logits", "memory", must=1 / 8, at_most=True), ours)
    assert result.value is not None
    assert (result.value.median, result.verdict) == (0.125, "pass")
    assert outcome(Goal("x", "logits", "memory", must=1 / 9, at_most=True), ours).verdict == "MISS"


def test_a_goal_without_a_measurement_gives_the_reason() -> None:
    goal = Goal("x", "liger", must=1.0)
    assert outcome(goal).note == "not begun"
    result = outcome(goal, row(OURS, 1.0), row("liger"))
    assert (result.verdict, result.note) == ("n/a", "liger: not here")
    broken = row("liger", status="FAILED", reason="RuntimeError: no")
    assert outcome(goal, row(OURS, 1.0), broken).note == "liger FAILED: RuntimeError: no"
    wrong = row(OURS, status="INCORRECT", reason="out: error 1")
    assert outcome(goal, wrong, row("liger", 1.0))[3:] == ("INCORRECT", "out: error 1")


def test_a_throttled_gpu_is_noted() -> None:
    """The outcome stays."""
    timed = Measurement(
        samples_s=(1.0, 1.0, 2.0, 2.0),
        clock="cuda-events",
        conditions=Conditions(readings=4, throttled={"power cap": 0.75}),
    )
    result = outcome(Goal("x", "flash", must=1.0), row(OURS, 1.0, measurement=timed), row("flash", *[3.0] * 4))
    assert (result.verdict, result.note) == ("pass", "throttled: power cap 75%; spread 67%")


def test_each_case_has_an_outcome_and_the_last_row_counts() -> None:
    rows = [row(OURS, 1.0), row(OURS, 2.0), row("flash", 3.0), row(OURS, 1.0, case="rows=8")]
    outcomes = judge(rows, [Goal("x", "flash", must=1.0)])
    assert [(outcome.shape, outcome.value and outcome.value.median, outcome.verdict) for outcome in outcomes] == [
        ("rows=4", 1.5, "pass"),
        ("rows=8", None, "n/a"),
    ]
