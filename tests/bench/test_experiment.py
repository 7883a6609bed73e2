"""The frame: groups run one after another, failures end no run, interrupted runs continue."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llmbench.bench.experiments import EXPERIMENTS, find_experiment
from llmbench.bench.experiments.experiment import Ask, Group, Pace, run
from llmbench.bench.results.sheets import baseline_of, curves, sheets
from llmbench.errors import CannotRunError, UnknownNameError, UnsupportedError
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.clock import CpuClock, DeviceLostError
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.measure.results import Header, Row, read
from llmbench.measure.store import Store
from tests.bench.test_pieces import references
from tests.measure.rows import header

PACE = Pace(budget_s=0.0, warmup_s=0.0, min_samples=2, max_samples=2)


def group(number: int, *names: str, calls: Callable[[], Any] = lambda: None, heard: list[int] | None = None) -> Group:
    """A group that records in `heard` when its candidates are built."""

    def candidates(_: ReferenceMeasurements) -> Sequence[Candidate]:
        if heard is not None:
            heard.append(number)
        return [Candidate(name=name, prepare=lambda: calls) for name in names]

    return Group(case={"number": number}, names=names, candidates=candidates, pace=PACE)


def open_store(path: Path, *, resume: bool = False) -> Store:
    """A result file."""
    return Store(path, header(), resume=resume)


def go(groups: list[Group], store: Store | None = None, **more: Any) -> list[Row]:
    """Run all groups."""
    return list(run(groups, clock=CpuClock(sample_s=1e-6), references=references(), store=store, **more))


def test_a_group_that_cannot_be_built_ends_no_run() -> None:
    def refuse(_: ReferenceMeasurements) -> Sequence[Candidate]:
        raise UnsupportedError("not built yet")

    broken = Group(case={"number": 0}, names=("a", "b"), candidates=refuse, pace=PACE)
    rows = go([broken, group(1, "c")])
    assert [(row.implementation, row.status, row.reason) for row in rows] == [
        ("a", "n/a", "not built yet"),
        ("b", "n/a", "not built yet"),
        ("c", "ok", None),
    ]


def test_candidates_are_built_when_their_group_runs() -> None:
    heard: list[int] = []
    rows = run([group(n, "a", heard=heard) for n in range(3)], clock=CpuClock(sample_s=1e-6), references=references())
    next(rows)
    assert heard == [0]
    next(rows)
    assert heard == [0, 1]


def test_an_interrupted_run_continues(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def interrupt(at: Group) -> None:
        if at.case["number"] == 2:
            raise KeyboardInterrupt

    groups = [group(n, "a", "b") for n in range(4)]
    with open_store(path) as store, pytest.raises(KeyboardInterrupt):
        go(groups, store, started=interrupt)
    assert len(read(path).rows) == 4
    # as if the process had been killed while it wrote the second group's last row
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    heard: list[int] = []
    with open_store(path, resume=True) as store:
        assert store.existing is not None
        assert [damage.line for damage in store.existing.damaged] == [5]
        go([group(n, "a", "b", heard=heard) for n in range(4)], store)
    assert heard == [1, 2, 3]  # the first is complete; the second group is timed again, side by side
    content = read(path)
    assert len(content.by_key()) == 8
    assert [damage.line for damage in content.damaged] == [5]
    with open_store(path, resume=True) as store:
        assert go(groups, store) == []


class Losing(CpuClock):
    """The clock of a GPU whose context a call can destroy."""

    def __init__(self) -> None:
        super().__init__(sample_s=1e-6)
        self.lost = False

    def use(self) -> None:
        """A kernel that fails once the context is lost."""
        if self.lost:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors")

    def check_device(self) -> None:
        """Raise what a GPU's clock raises."""
        try:
            self.use()
        except RuntimeError:
            raise DeviceLostError("the GPU's context is lost (an illegal access)") from None

    def losing(self, call: int) -> Callable[[], None]:
        """A kernel that destroys the context in that call."""
        counted = iter(range(1, 10**9))

        def bad() -> None:
            self.lost = self.lost or next(counted) == call
            self.use()

        return bad


@pytest.mark.parametrize("call", [1, 4], ids=["gate", "clock"])
def test_a_lost_gpu_ends_the_session_and_resuming_continues(tmp_path: Path, call: int) -> None:
    """The candidate that destroys the context is named and not tried again. No other candidate is marked FAILED."""
    path = tmp_path / "rows.jsonl"

    def session(*, resume: bool) -> list[tuple[Any, str, str]]:
        clock = Losing()

        def group(number: int, *names: str) -> Group:
            def candidates(_: ReferenceMeasurements) -> Sequence[Candidate]:
                calls = {name: clock.losing(call) if name == "bad" else clock.use for name in names}
                return [Candidate(name=name, prepare=lambda name=name: calls[name]) for name in names]

            return Group(case={"number": number}, names=names, candidates=candidates, pace=PACE)

        groups = [group(0, "a"), group(1, "b", "bad", "c"), group(2, "d")]
        with open_store(path, resume=resume) as store:
            rows = run(groups, clock=clock, references=references(), store=store)
            return [(row.case["number"], row.implementation, row.status) for row in rows]

    with pytest.raises(CannotRunError, match=r"context is lost \(an illegal access\), at bad at number 1") as raised:
        session(resume=False)
    assert "--resume continues" in str(raised.value.hint)
    written = [(row.implementation, row.status, row.reason) for row in read(path).rows]
    assert written == [("a", "ok", None), ("bad", "FAILED", "the GPU's context is lost (an illegal access)")]
    assert session(resume=True) == [(1, "b", "ok"), (1, "c", "ok"), (2, "d", "ok")]
    assert session(resume=True) == []


def test_a_gpu_that_is_lost_between_groups_ends_the_run(tmp_path: Path) -> None:
    """No candidate is to blame: no row reports it, and resuming tries everything again."""
    clock = Losing()

    def lose(at: Group) -> None:
        clock.lost = at.case["number"] == 1

    def refuse(_: ReferenceMeasurements) -> Sequence[Candidate]:
        clock.check_device()
        return [Candidate(name="b", prepare=lambda: clock.use)]

    second = Group(case={"number": 1}, names=("b",), candidates=refuse, pace=PACE)
    with (
        open_store(tmp_path / "rows.jsonl") as store,
        pytest.raises(CannotRunError, match=r"context is lost .* at number 1"),
    ):
        list(run([group(0, "a"), second], clock=clock, references=references(), store=store, started=lose))
    assert [row.implementation for row in read(store.path).rows] == ["a"]


def test_an_error_that_a_gpu_survives_ends_no_run() -> None:
    def refused() -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")

    rows = go([group(0, "a", calls=refused), group(1, "b")])
    assert [(row.implementation, row.status) for row in rows] == [("a", "FAILED"), ("b", "ok")]


def test_rows_are_in_the_file_before_they_are_yielded(tmp_path: Path) -> None:
    with open_store(tmp_path / "rows.jsonl") as store:
        for row in run([group(0, "a")], clock=CpuClock(sample_s=1e-6), references=references(), store=store):
            assert read(store.path).rows == [row]


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in ("collectives", "textbook")])
def test_groups_have_distinct_cases(name: str, quick: bool, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every preset of every experiment, as far as no device is needed: groups can be created, and each is distinct. The
    full preset has at least as many groups as the quick one."""
    import llmbench.bench.experiments.heads as of_heads

    monkeypatch.setattr(of_heads, "free_bytes", lambda device: 2**37)
    experiment = find_experiment(name)
    assert experiment.name == name
    groups = experiment.groups(Ask(quick=quick, device=torch.device(place), dtype="bf16"))
    keys = [key for group in groups for key in group.row_keys()]
    assert len(set(keys)) == len(keys)
    assert {group.experiment for group in groups} == {name}
    assert all(experiment.baseline in group.names for group in groups)
    if not quick:
        fewer = experiment.groups(Ask(quick=True, device=torch.device(place), dtype="bf16"))
        assert len(groups) >= len(fewer)


def test_an_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as problem:
        find_experiment("norm")
    assert "did you mean `norms`?" in str(problem.value.hint)


def test_sheets_share_all_but_one_field() -> None:
    experiment = find_experiment("attention")
    rows = [
        Row(
            experiment="attention",
            case={"mask": mask, "heads": 4, "seq_len": length},
            implementation=name,
            status="OOM",
            reason="no room",
        )
        for mask in ("causal", "alibi")
        for length in (128, 64)
        for name in ("flash", "standard")
    ]
    common, charts = sheets(rows, experiment.chart)
    assert common == "4 heads"
    assert [sheet.title for sheet in charts] == ["causal", "ALiBi"]
    assert [row.case["seq_len"] for row in charts[0].rows] == [64, 64, 128, 128]
    against = baseline_of(rows, experiment)
    assert all(rows[i].case == row.case and row.implementation == "standard" for i, row in against.items())
    assert len(against) == len(rows)
    for panel in curves(charts, experiment.chart):
        assert [series.label for series in panel.series] == ["flash (OOM)", "standard (OOM)"]
        assert not any(series.points for series in panel.series)
    assert isinstance(header(), Header)
