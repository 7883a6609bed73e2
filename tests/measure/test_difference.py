"""What got slower by more than the noise, and what did not."""

from __future__ import annotations

import random
import time
from pathlib import Path

import msgspec
import pytest

from llmbench.errors import LLMBenchError
from llmbench.measure.clock import CpuClock, compare
from llmbench.measure.difference import FLOOR, diff, noise
from llmbench.measure.measurement import quantile, ratio
from llmbench.measure.results import Damage, Results, Store, read
from tests.measure.rows import PLACE, anchors, header, results, row, timed


def runs(seed: int, *, spread: float, slower: float = 1.0) -> tuple[float, ...]:
    """Thirty samples around 10 ms with a long tail, as a busy machine has them."""
    draw = random.Random(seed)
    return tuple(0.01 * slower * (1 + spread * draw.lognormvariate(0, 0.5)) for _ in range(30))


@pytest.mark.parametrize("spread", [0.0, 0.02, 0.1, 0.2])
def test_identical_builds_show_nothing_and_a_slow_down_shows(spread: float) -> None:
    for seed in range(50):
        before = results(*(row("flash", *runs(10 * seed + n, spread=spread), seq=n) for n in range(4)))
        again = results(*(row("flash", *runs(10 * seed + n + 5000, spread=spread), seq=n) for n in range(4)))
        assert [change.verdict for change in diff(before, again).changes] == ["same"] * 4
        assert not diff(before, again).regressions
        slow = runs(seed + 9000, spread=spread, slower=1.3)
        planted = results(*again.rows[:3], row("flash", *slow, seq=3))
        (found,) = diff(before, planted).regressions
        assert dict(found.key[1])["seq"] == 3
        assert found.ratio == pytest.approx(1.3, rel=0.1)
        assert found.noise is not None
        assert found.ratio > 1 + found.noise
        (faster,) = [change for change in diff(planted, before).changes if change.verdict != "same"]
        assert faster.verdict == "faster"


def test_a_slow_down_that_was_really_measured(tmp_path: Path) -> None:
    """Sleeps of 10 ms, again, and of 13 ms, through the clock and the files. A busy machine may disturb one run, hardly
    all five; a harness that does not see the difference never does."""

    def build(name: str, seconds: float) -> Results:
        found = compare({"x": lambda: time.sleep(seconds)}, clock=CpuClock(), budget_s=0.3, warmup_s=0)["x"]
        path = tmp_path / f"{name}.jsonl"
        with Store(path, header()) as store:
            store.write([row("x", *found.samples_s)])
        return read(path)

    seen = []
    for attempt in range(5):
        before, again, slow = (build(f"{n}-{attempt}", s) for n, s in enumerate((0.01, 0.01, 0.013)))
        seen.append(tuple(diff(before, after).changes[0].verdict for after in (again, slow)))
        if seen[-1] == ("same", "slower"):
            return
    raise AssertionError(seen)


def test_noise_is_that_of_both_and_never_nothing() -> None:
    steady, wide = timed(1.0, 1.0, 1.0), timed(0.9, 1.0, 1.2)
    assert noise(steady, steady) == FLOOR
    assert noise(steady, wide) == pytest.approx(0.15)
    assert noise(wide, wide) == pytest.approx(0.15 * 2**0.5)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ("ok", "INCORRECT", "broken"),
        ("ok", "OOM", "broken"),
        ("ok", "n/a", "broken"),
        ("OOM", "ok", "mended"),
        ("OOM", "OOM", "same"),
        ("OOM", "INCORRECT", "broken"),
        ("n/a", "OOM", "same"),
        (None, "ok", "new"),
        ("ok", None, "gone"),
    ],
)
def test_rows_without_a_time(before: str | None, after: str | None, verdict: str) -> None:
    old, new = (results(*([row("x", status=status)] if status else [])) for status in (before, after))
    (change,) = diff(old, new).changes
    assert (change.verdict, change.ratio) == (verdict, None)
    assert bool(diff(old, new).regressions) == (verdict == "broken")


def test_the_worst_comes_first() -> None:
    before = results(row("a", 1.0), row("b", 1.0), row("c", 1.0), row("d", 1.0))
    after = results(row("a", 1.5), row("b", 2.0), row("c", status="OOM"), row("d", 1.0))
    assert [change.key[2] for change in diff(before, after).regressions] == ["c", "b", "a"]


def test_what_else_differs_is_said() -> None:
    before = results(row(), anchors=anchors())
    later = msgspec.structs.replace(PLACE, torch="2.14.0", triton="3.9.0")
    after = results(row(), environment=later, anchors=anchors(matmul_s=1.5e-3), inputs={})
    assert diff(before, before).notes == []
    assert diff(before, after).notes == [
        "torch: 2.13.0 → 2.14.0",
        "triton: unknown → 3.9.0",
        "the inputs of the two sessions differ",
        "the machine itself: product takes 1.50× as long",
    ]
    damaged = before._replace(damaged=[Damage("file.jsonl", 3, "truncated")], headers=[])
    assert diff(damaged, before).notes == [
        "1 damaged lines in file.jsonl left out",
        "a file has no header: where it was measured is not known",
    ]


def test_quantiles_are_numpys() -> None:
    numpy = pytest.importorskip("numpy")
    for count in (1, 2, 3, 10, 37):
        values = [random.Random(count).random() for _ in range(count)]
        for q in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
            assert quantile(values, q) == pytest.approx(float(numpy.quantile(values, q)), rel=1e-12)


def test_statistics_and_what_they_say() -> None:
    found = timed(4.0, 1.0, 3.0, 2.0, 5.0, notes=("a note",))
    assert (found.median_s, found.iqr_s, found.n) == (3.0, 2.0, 5)
    assert (found.p10_s, found.p90_s) == pytest.approx((1.4, 4.6))
    said = ("a note", "wide spread: the middle half of the samples reaches over 67% of the median")
    assert found.remarks() == said
    assert found.as_row()["notes"] == list(said)
    assert timed(1.0, 1.01, 1.02).remarks() == ()


def test_a_ratio_pairs_samples() -> None:
    found = ratio(timed(2.0, 4.0, 9.0), timed(1.0, 2.0, 3.0))
    assert found == (2.0, 2.0, pytest.approx(2.8), 3)
    with pytest.raises(LLMBenchError, match="these are 2 and 1"):
        ratio(timed(1.0, 2.0), timed(1.0))
    with pytest.raises(LLMBenchError, match="time of zero"):
        ratio(timed(1.0), timed(0.0))
