"""Which rows became slower by more than the noise."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from llmbench.errors import LLMBenchError
from llmbench.measure import clock
from llmbench.measure.clock import CpuClock, compare
from llmbench.measure.measurement import MemoryPeak, quantile, ratio
from llmbench.measure.regressions import NOISE_FLOOR, Noise, _student_quantile, diff, noise
from llmbench.measure.results import Damage, Results, Row, Session, read
from llmbench.measure.store import Store
from tests.measure.rows import ENVIRONMENT, header, references, results, row, timed

MIB = 2**20


CASES, CANDIDATES, SAMPLES = 8, 3, 10
"""A sweep of 24 rows, each with the least number of samples."""


class Machine:
    """A simulated shared CPU with random times of about 10 ms. Within a run they have heavy tails of `spread`. Between
    runs three things change: each row (1.5%), the whole run (3%, also its reference measurements) and one case in ten
    (up to 2×)."""

    def __init__(self, seed: int, *, spread: float) -> None:
        self.draw, self.spread = random.Random(seed), spread

    def sweep(self) -> Results:
        """Return the results of one run."""
        today = math.exp(self.draw.gauss(0, 0.03))
        rows = []
        for case in range(CASES):
            level_of_case = today * (1 + self.draw.random() if self.draw.random() < 0.1 else 1.0)
            for candidate in range(CANDIDATES):
                level = 0.01 * level_of_case * math.exp(self.draw.gauss(0, 0.015))
                rows.append(row(f"r{candidate}", *(level * self.tail() for _ in range(SAMPLES)), seq=case))
        return results(*rows, reference_measurements=references(matmul_s=1e-3 * today))

    def tail(self) -> float:
        """Return a sample's random factor: near 1 half of the time, and rarely several times as large."""
        return 1 + self.spread * self.draw.lognormvariate(0, 1)


def slowed(content: Results, times: float, *, seq: int | None = None, candidate: str | None = None) -> Results:
    """Return the results with the rows of a case, of a candidate or of all slowed by a factor."""

    def slow(row: Row) -> Row:
        assert row.measurement is not None
        if seq is not None and row.case["seq"] != seq:
            return row
        if candidate is not None and row.implementation != candidate:
            return row
        samples = tuple(sample * times for sample in row.measurement.samples_s)
        return msgspec.structs.replace(row, measurement=msgspec.structs.replace(row.measurement, samples_s=samples))

    return content._replace(sessions=[Session(head, [slow(row) for row in rows]) for head, rows in content.sessions])


def with_measurements(content: Results, **fields: Any) -> Results:
    """Return the results of one session with these fields in each measurement."""
    ((head, rows),) = content.sessions
    measurements = [msgspec.structs.replace(row.measurement, **fields) for row in rows]
    rows = [msgspec.structs.replace(row, measurement=new) for row, new in zip(rows, measurements, strict=True)]
    return content._replace(sessions=[Session(head, rows)])


def verdicts(before: Results, after: Results) -> list[str]:
    """Return the verdicts in the order of the rows."""
    return [change.verdict for change in diff(before, after).changes]


@pytest.mark.parametrize("spread", [0.01, 0.05, 0.2, 1.0])
def test_two_runs_of_one_build_show_no_regression(spread: float) -> None:
    """In either order and for each spread, fewer than 1% of sweeps show one."""
    false_alarms = 0
    for seed in range(600):
        machine = Machine(seed, spread=spread)
        first, second = machine.sweep(), machine.sweep()
        false_alarms += "slower" in verdicts(first, second)
        false_alarms += "slower" in verdicts(second, first)
    assert false_alarms < 0.01 * 1200


@pytest.mark.parametrize(("spread", "least"), [(0.01, 0.97), (0.03, 0.9)])
def test_a_slow_down_is_found(spread: float, least: float) -> None:
    """One row of 24 is slowed by 1.3× in a case without a disturbance. If it is not found, the verdict is "unclear"."""
    counts: Counter[str] = Counter()
    for seed in range(200):
        machine = Machine(seed, spread=spread)
        before, after = machine.sweep(), slowed(machine.sweep(), 1.3, seq=seed % CASES, candidate="r1")
        changes = {change.key: change for change in diff(before, after).changes}
        others = [change for key, change in changes.items() if dict(key[1])["seq"] == seed % CASES and key[2] != "r1"]
        if all(abs(change.ratio - 1) < 0.15 for change in others if change.ratio is not None):
            counts[changes[row("r1", seq=seed % CASES).key].verdict] += 1
    total = sum(counts.values())
    assert total > 100
    assert counts["slower"] >= least * total
    assert counts["same"] + counts["faster"] <= 0.01 * total


def test_noisy_samples_are_never_called_the_same() -> None:
    """A spread at which 1.3× cannot be detected."""
    machine = Machine(1, spread=1.0)
    counts = Counter(verdicts(machine.sweep(), machine.sweep()))
    assert counts["same"] == 0
    assert counts["unclear"] >= 20


def steady(count: int = 4, **more: Any) -> Results:
    """Cases of three candidates, each of 10 ms within 0.1%."""
    times = [0.01 * (1 + n * 1e-4) for n in range(SAMPLES)]
    return results(*(row(name, *times, seq=seq) for seq in range(count) for name in ("a", "b", "c")), **more)


def test_times_that_no_machine_measures_have_a_verdict() -> None:
    """The noise and the ratio can be larger than the numbers of fp64, as logarithms they are not."""
    wild = results(row("a", 1e-9, 1e-9, 1e-9, 1e3, 1e3))
    (change,) = diff(wild, wild).changes
    assert (change.verdict, change.noise) == ("unclear", None)
    (change,) = diff(results(row("a", *[1e-300] * 9)), results(row("a", *[1e300] * 9))).changes
    assert (change.verdict, change.ratio) == ("slower", math.exp(700))


def test_one_sample_is_unclear() -> None:
    (change,) = diff(results(row("flash", 0.01)), results(row("flash", 0.1))).changes
    assert (change.verdict, change.noise) == ("unclear", None)
    assert change.ratio == pytest.approx(10)


def test_a_common_change_of_one_case_is_the_machine() -> None:
    """One case of four: unclear. All cases: slower, because a disturbance would pass. One candidate: slower."""
    before = steady()
    one_case = diff(before, slowed(before, 1.5, seq=2))
    assert [change.verdict for change in one_case.changes] == ["same"] * 6 + ["unclear"] * 3 + ["same"] * 3
    (note,) = one_case.notes
    assert note.startswith(
        "compared with the other cases, the candidates of 1 case became slower together, by up to 1.5×. "
    )
    assert verdicts(before, slowed(before, 1.5)) == ["slower"] * 12
    slower, faster = (
        diff(*pair).changes[6] for pair in ((before, slowed(before, 1.5, seq=2)), (slowed(before, 1.5, seq=2), before))
    )
    assert (slower.noise, faster.noise) == pytest.approx(
        (1.5 * math.exp(0.1) - 1, 1 - 1 / (1.5 * math.exp(0.1))), rel=0.01
    )
    assert verdicts(before, slowed(before, 1.5, candidate="b")) == ["same", "slower", "same"] * 4
    assert verdicts(before, slowed(slowed(before, 1.5, seq=2), 1.4, seq=2, candidate="b"))[6:9] == [
        "unclear",
        "slower",
        "unclear",
    ]
    for times in (2.5, 10):  # no disturbance is so large: the shared code is slower
        assert verdicts(before, slowed(before, times, seq=2))[6:9] == ["slower"] * 3
    alone = results(row("a", 1.0, 1.0))
    assert verdicts(alone, slowed(alone, 1.5)) == ["slower"]


def test_reference_measurements_show_a_slower_machine() -> None:
    """Rows that became as much slower as the product are no regression. Rows that became much slower than it are, and
    so are slower rows on a machine whose product became faster."""
    before, after = (
        steady(reference_measurements=references()),
        steady(reference_measurements=references(matmul_s=1.2e-3)),
    )
    assert set(verdicts(before, slowed(after, 1.15))) == {"same"}
    assert set(verdicts(before, slowed(after, 1.25))) == {"unclear"}
    assert set(verdicts(before, slowed(after, 1.4))) == {"slower"}
    assert set(verdicts(before, slowed(before, 1.15))) == {"slower"}
    assert set(verdicts(after, slowed(before, 1.15))) == {"slower"}


def test_run_queue_delay_is_no_regression() -> None:
    """A run that had the core half of the time may take twice as long."""

    def waited(content: Results, share: float) -> Results:
        return with_measurements(content, run_queue_share=share)

    before = steady()
    twice = slowed(before, 2.0)
    assert set(verdicts(before, twice)) == {"slower"}
    assert set(verdicts(before, waited(twice, 0.5))) == {"unclear"}
    assert set(verdicts(waited(before, 0.5), twice)) == {"slower"}
    assert set(verdicts(waited(twice, 0.5), before)) == {"unclear"}
    assert set(verdicts(before, waited(slowed(before, 3.0), 0.5))) == {"slower"}


def test_slower_barriers_are_no_regression() -> None:
    """A multi-threaded call may slow down as much as the barriers did, and no further."""

    def barriers(content: Results, seconds: float, threads: int = 2) -> Results:
        return with_measurements(content, barrier_s=seconds, threads=threads)

    before, slow = barriers(steady(), 7e-6), slowed(steady(), 1.8)
    assert set(verdicts(before, barriers(slow, 7e-6))) == {"slower"}
    assert set(verdicts(before, barriers(slow, 14e-6))) == {"unclear"}
    assert set(verdicts(barriers(slow, 14e-6), before)) == {"unclear"}
    assert set(verdicts(barriers(steady(), 14e-6), barriers(slow, 7e-6))) == {"slower"}
    assert set(verdicts(before, barriers(slowed(steady(), 2.3), 14e-6))) == {"slower"}
    assert set(verdicts(before, barriers(slow, 14e-6, threads=3))) == {"slower"}
    assert set(verdicts(before, slow)) == {"slower"}
    (note,) = diff(before, barriers(slow, 14e-6)).notes
    rows = len(slow.rows)
    assert note.startswith("barrier cost (thread synchronisation) differs between the runs for ")
    assert f" {rows} of {rows} rows (up to 2.0×)" in note
    assert not diff(before, barriers(slow, 7.5e-6)).notes


def test_rows_use_the_reference_measurements_of_their_session() -> None:
    """A file was resumed on a slower machine: that explains the rows of the second session and not those of the
    first."""
    before = steady(2, reference_measurements=references())
    early, late = before.rows[:3], before.rows[3:]
    resumed = before._replace(
        sessions=[
            Session(header(reference_measurements=references()), early),
            Session(header(reference_measurements=references(matmul_s=1.3e-3)), late),
        ]
    )
    assert verdicts(before, slowed(resumed, 1.25)) == ["slower"] * 3 + ["unclear"] * 3


def test_a_slow_down_is_found_through_clock_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of about 10 ms twice, then of 13 ms, in simulated time, which a busy machine does not lengthen."""
    draw = random.Random(1)
    time = SimpleNamespace(now=0.0)
    time.perf_counter = lambda: time.now
    monkeypatch.setattr(clock, "time", time)

    def build(name: str, seconds: float) -> Results:
        def call() -> None:
            time.now += seconds * (1 + 0.02 * draw.random())

        measurement = compare({"x": call}, clock=CpuClock(), budget_s=0.3, warmup_s=0)["x"]
        path = tmp_path / f"{name}.jsonl"
        with Store(path, header()) as store:
            store.write([row("x", *measurement.samples_s)])
        return read(path)

    before, again, slow = (build(str(n), seconds) for n, seconds in enumerate((0.01, 0.01, 0.013)))
    assert verdicts(before, again) == ["same"]
    assert verdicts(before, slow) == ["slower"]
    assert verdicts(slow, before) == ["faster"]


def test_noise_agrees_with_arithmetic() -> None:
    quiet, noisy = timed(*[1.0] * 10), timed(*[0.9] * 3, *[1.0] * 4, *[1.1] * 3)
    assert noise(quiet, quiet) == (-NOISE_FLOOR["cpu"], NOISE_FLOOR["cpu"]) == (-0.1, 0.1)
    error = 1.2533 * (0.15 / 1.349) / 10**0.5  # IQR 0.15
    t = 3.44  # 99.5% of Student's t with 7.4 degrees of freedom: 3.499 with 7, 3.355 with 8
    assert noise(quiet, noisy).high == pytest.approx(math.hypot(0.1, t * error), rel=0.02)
    assert noise(noisy, noisy).high == pytest.approx(math.hypot(0.1, t * error * 2**0.5), rel=0.02)
    assert noise(noisy, noisy, rows=24).high > 1.3 * noise(noisy, noisy).high
    assert noise(quiet, quiet, known=(0.3, -0.2, 0.1)) == pytest.approx((-0.3, 0.5))
    before, after = timed(*[1.0] * 10, run_queue_share=0.5), timed(*[1.0] * 10, run_queue_share=0.75)
    assert noise(before, after) == pytest.approx((-0.1 - math.log(2), 0.1 + math.log(4)))
    assert math.isfinite(noise(before, timed(*[1.0] * 10, run_queue_share=1.0)).high)
    before, after = timed(*[1.0] * 10, barrier_s=2e-6), timed(*[1.0] * 10, barrier_s=4e-6)
    assert noise(before, after) == pytest.approx((-0.1, 0.1 + math.log(2)))
    assert noise(after, before) == pytest.approx((-0.1 - math.log(2), 0.1))
    assert noise(before, timed(*[1.0] * 10, barrier_s=1.0)).high == pytest.approx(0.1 + math.log(2.5))


@pytest.mark.parametrize(
    ("log_ratio", "verdict"),
    [(0.31, "slower"), (0.29, "unclear"), (0.1, "unclear"), (0.06, "same"), (0, "unclear"), (-0.21, "faster")],
)
def test_same_means_that_a_change_is_ruled_out(log_ratio: float, verdict: str) -> None:
    """ln 1.3 = 0.262, and the noise reaches from -0.2 to 0.3. Then 0.06 rules out a slow-down by 1.3×, because 0.06 +
    0.2 < 0.262, and a speed-up, because 0.3 - 0.06 < 0.262."""
    assert Noise(-0.2, 0.3).verdict(log_ratio) == verdict


@pytest.mark.parametrize(
    ("share", "freedom", "value"), [(0.975, 10, 2.228), (0.995, 7, 3.499), (0.999, 8, 4.501), (0.9995, 15, 4.073)]
)
def test_students_t_agrees_with_the_tables(share: float, freedom: float, value: float) -> None:
    assert _student_quantile(share, freedom) == pytest.approx(value, rel=0.02)


@pytest.mark.parametrize(
    ("before", "after", "grew"),
    [
        (100 * MIB, 106 * MIB, True),
        (100 * MIB, 104 * MIB, False),
        (0, 2 * MIB, True),
        (10_000, 900_000, False),  # less than a MiB
        (106 * MIB, 100 * MIB, False),
        (None, 100 * MIB, False),
    ],
)
def test_memory_that_grew_is_a_regression(before: int | None, after: int, grew: bool) -> None:
    def with_peak(count: int | None) -> Results:
        return results(row(memory=None if count is None else MemoryPeak(added_bytes=count, by="tensors")))

    difference = diff(with_peak(before), with_peak(after))
    assert (difference.changes[0].verdict, difference.changes[0].memory_grew) == ("same", grew)
    assert difference.regressions == (difference.changes if grew else [])


def test_files_without_a_common_row_are_refused() -> None:
    with pytest.raises(LLMBenchError, match="no row in common") as refused:
        diff(results(row("a")), results(row("b")))
    assert "one experiment" in (refused.value.hint or "")
    assert "(implementation: a → b)" in str(refused.value)


def test_files_of_two_models_name_the_models() -> None:
    first, second = (
        results(row(seq=seq), inputs={"model": model}) for model, seq in (("gpt2", 64), ("llama3-8b", 128))
    )
    with pytest.raises(LLMBenchError, match=r"\(model: gpt2 → llama3-8b\)"):
        diff(first, second)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ("ok", "INCORRECT", "broken"),
        ("ok", "OOM", "broken"),
        ("ok", "n/a", "broken"),
        ("OOM", "ok", "fixed"),
        ("OOM", "OOM", "untimed"),
        ("OOM", "INCORRECT", "broken"),
        ("n/a", "OOM", "untimed"),
        ("n/a", "FAILED", "broken"),
        ("FAILED", "INCORRECT", "untimed"),
        ("INCORRECT", "OOM", "untimed"),
        (None, "ok", "new"),
        ("ok", None, "gone"),
    ],
)
def test_rows_without_a_time(before: str | None, after: str | None, verdict: str) -> None:
    old, new = (results(row("y"), *([row("x", status=status)] if status else [])) for status in (before, after))
    (_, change) = diff(old, new).changes
    assert (change.verdict, change.ratio) == (verdict, None)
    assert bool(diff(old, new).regressions) == (verdict == "broken")


def test_the_worst_comes_first() -> None:
    before = results(*(row(name, 1.0, 1.0) for name in "abcd"))
    after = results(row("a", 1.5, 1.5), row("b", 2.0, 2.0), row("c", status="OOM"), row("d", 1.0, 1.0))
    assert [change.key[2] for change in diff(before, after).regressions] == ["c", "b", "a"]


def test_other_differences_are_noted() -> None:
    before = results(row(), reference_measurements=references())
    later = msgspec.structs.replace(ENVIRONMENT, torch="2.14.0", triton="3.9.0")
    after = results(row(), environment=later, reference_measurements=references(matmul_s=1.5e-3), inputs={})
    assert diff(before, before).notes == []
    assert diff(before, after).notes == [
        "torch: 2.13.0 → 2.14.0",
        "triton: unknown → 3.9.0",
        "the two sessions have different inputs",
        "reference measurement: product takes 1.50× as long in the second file",
    ]
    damaged = before._replace(
        damaged=[Damage("file.jsonl", 3, "truncated")], sessions=[Session(None, before.sessions[0].rows)]
    )
    assert diff(damaged, before).notes == [
        "1 damaged line of file.jsonl left out",
        "no header in file.jsonl: the machine and the inputs of the run are unknown",
    ]


def test_quantiles_agree_with_numpy() -> None:
    numpy = pytest.importorskip("numpy")
    for count in (1, 2, 3, 10, 37):
        values = [random.Random(count).random() for _ in range(count)]
        for q in (0.0, 0.1, 0.25, 0.5, 0.9, 1.0):
            assert quantile(values, q) == pytest.approx(float(numpy.quantile(values, q)), rel=1e-12)


def test_statistics_and_remarks() -> None:
    measurement = timed(4.0, 1.0, 3.0, 2.0, 5.0, notes=("a note",))
    assert (measurement.median_s, measurement.iqr_s, measurement.n) == (3.0, 2.0, 5)
    assert (measurement.p10_s, measurement.p90_s) == pytest.approx((1.4, 4.6))
    remarks = ("a note", "noisy: IQR is 67% of the median")
    assert measurement.remarks() == remarks
    contention = "CPU contention: runnable threads waited for a core 30% of the time"
    assert timed(1.0, run_queue_share=0.3).remarks() == (contention,)
    assert timed(1.0, run_queue_share=0.01).remarks() == ()
    assert timed(1.0, 1.01, 1.02).remarks() == ()


def test_a_ratio_pairs_samples() -> None:
    speedup = ratio(timed(2.0, 4.0, 9.0), timed(1.0, 2.0, 3.0))
    assert speedup == (2.0, 2.0, pytest.approx(2.8), 3)
    with pytest.raises(LLMBenchError, match="cannot pair 2 samples with 1"):
        ratio(timed(1.0, 2.0), timed(1.0))
    with pytest.raises(LLMBenchError, match="time of zero"):
        ratio(timed(1.0), timed(0.0))
