"""The frame: groups one after the other, failures that end nothing, runs that are broken off and go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from llmbench.bench.experiments import find_experiment
from llmbench.bench.experiments.experiment import Ask, Group, Pace, run
from llmbench.bench.results.sheets import baseline_of, curves, sheets
from llmbench.errors import CannotRunError, UnknownNameError, UnsupportedError
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.clock import CpuClock, DeviceLostError
from llmbench.measure.reference import ReferenceMeasurements
from llmbench.measure.results import Header, Row, Store, read
from tests.bench.test_pieces import references
from tests.measure.rows import header

PACE = Pace(budget_s=0.0, warmup_s=0.0, min_samples=2, max_samples=2)


def group(number: int, *names: str, calls: Callable[[], Any] = lambda: None, heard: list[int] | None = None) -> Group:
    """A group that says when its rivals are made."""

    def rivals(_: ReferenceMeasurements) -> Sequence[Candidate]:
        if heard is not None:
            heard.append(number)
        return [Candidate(name=name, prepare=lambda: calls) for name in names]

    return Group(experiment="test", case={"number": number}, names=names, rivals=rivals, pace=PACE)


def kept(path: Path, *, resume: bool = False) -> Store:
    """A file of results."""
    return Store(path, header(), resume=resume)


def go(groups: list[Group], store: Store | None = None, **more: Any) -> list[Row]:
    """Run them all."""
    return list(run(groups, clock=CpuClock(sample_s=1e-6), references=references(), store=store, **more))


def test_a_group_that_cannot_be_made_ends_nothing() -> None:
    def refuse(_: ReferenceMeasurements) -> Sequence[Candidate]:
        raise UnsupportedError("not built yet")

    broken = Group(experiment="test", case={"number": 0}, names=("a", "b"), rivals=refuse, pace=PACE)
    rows = go([broken, group(1, "c")])
    assert [(row.implementation, row.status, row.reason) for row in rows] == [
        ("a", "n/a", "not built yet"),
        ("b", "n/a", "not built yet"),
        ("c", "ok", None),
    ]


def test_rivals_are_made_when_their_turn_comes() -> None:
    heard: list[int] = []
    rows = run([group(n, "a", heard=heard) for n in range(3)], clock=CpuClock(sample_s=1e-6), references=references())
    next(rows)
    assert heard == [0]
    next(rows)
    assert heard == [0, 1]


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"

    def interrupt(at: Group) -> None:
        if at.case["number"] == 2:
            raise KeyboardInterrupt

    groups = [group(n, "a", "b") for n in range(4)]
    with kept(path) as store, pytest.raises(KeyboardInterrupt):
        go(groups, store, started=interrupt)
    assert len(read(path).rows) == 4
    # as if it had been killed while it wrote the second group's last row
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    heard: list[int] = []
    with kept(path, resume=True) as store:
        assert store.existing is not None
        assert [damage.line for damage in store.existing.damaged] == [5]
        go([group(n, "a", "b", heard=heard) for n in range(4)], store)
    assert heard == [1, 2, 3]  # the first is whole; the second's rivals are timed side by side once more
    found = read(path)
    assert len(found.by_key()) == 8
    assert [damage.line for damage in found.damaged] == [5]
    with kept(path, resume=True) as store:
        assert go(groups, store) == []


class Losing(CpuClock):
    """The clock of a GPU whose context a call can take, in a process of its own."""

    def __init__(self) -> None:
        super().__init__(sample_s=1e-6)
        self.lost = False

    def use(self) -> None:
        """What every kernel does."""
        if self.lost:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors")

    def check_device(self) -> None:
        """As a GPU's clock does."""
        try:
            self.use()
        except RuntimeError:
            raise DeviceLostError("the GPU's context is lost (an illegal access)") from None

    def losing(self, call: int) -> Callable[[], None]:
        """A kernel that takes the context in that call of its."""
        counted = iter(range(1, 10**9))

        def bad() -> None:
            self.lost = self.lost or next(counted) == call
            self.use()

        return bad


@pytest.mark.parametrize("call", [1, 4], ids=["gate", "clock"])
def test_a_lost_gpu_ends_the_session_and_resuming_goes_on(tmp_path: Path, call: int) -> None:
    """What takes the context is told by name and not tried again; no other rival is told to have failed."""
    path = tmp_path / "rows.jsonl"

    def session(*, resume: bool) -> list[tuple[Any, str, str]]:
        clock = Losing()

        def group(number: int, *names: str) -> Group:
            def rivals(_: ReferenceMeasurements) -> Sequence[Candidate]:
                calls = {name: clock.losing(call) if name == "bad" else clock.use for name in names}
                return [Candidate(name=name, prepare=lambda name=name: calls[name]) for name in names]

            return Group(experiment="test", case={"number": number}, names=names, rivals=rivals, pace=PACE)

        groups = [group(0, "a"), group(1, "b", "bad", "c"), group(2, "d")]
        with kept(path, resume=resume) as store:
            rows = run(groups, clock=clock, references=references(), store=store)
            return [(row.case["number"], row.implementation, row.status) for row in rows]

    with pytest.raises(CannotRunError, match=r"context is lost \(an illegal access\), at bad at number 1") as raised:
        session(resume=False)
    assert "--resume goes on" in str(raised.value.hint)
    written = [(row.implementation, row.status, row.reason) for row in read(path).rows]
    assert written == [("a", "ok", None), ("bad", "FAILED", "the GPU's context is lost (an illegal access)")]
    assert session(resume=True) == [(1, "b", "ok"), (1, "c", "ok"), (2, "d", "ok")]
    assert session(resume=True) == []


def test_a_gpu_that_is_lost_between_groups_ends_the_run(tmp_path: Path) -> None:
    """Nobody's doing: no row says so, and resuming tries all of it again."""
    clock = Losing()

    def lose(at: Group) -> None:
        clock.lost = at.case["number"] == 1

    def refuse(_: ReferenceMeasurements) -> Sequence[Candidate]:
        clock.check_device()
        return [Candidate(name="b", prepare=lambda: clock.use)]

    second = Group(experiment="test", case={"number": 1}, names=("b",), rivals=refuse, pace=PACE)
    with kept(tmp_path / "rows.jsonl") as store, pytest.raises(CannotRunError, match=r"context is lost .* at number 1"):
        list(run([group(0, "a"), second], clock=clock, references=references(), store=store, started=lose))
    assert [row.implementation for row in read(store.path).rows] == ["a"]


def test_an_error_that_a_gpu_survives_ends_nothing() -> None:
    def refused() -> None:
        raise torch.AcceleratorError("CUDA error: no kernel image is available for execution on the device")

    rows = go([group(0, "a", calls=refused), group(1, "b")])
    assert [(row.implementation, row.status) for row in rows] == [("a", "FAILED"), ("b", "ok")]


def test_rows_are_in_the_file_before_they_are_seen(tmp_path: Path) -> None:
    with kept(tmp_path / "rows.jsonl") as store:
        for row in run([group(0, "a")], clock=CpuClock(sample_s=1e-6), references=references(), store=store):
            assert read(store.path).rows == [row]


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize(
    "name", ["attention", "norms", "activations", "positions", "heads", "moe", "generate", "train"]
)
def test_groups_are_cases_of_their_own(name: str, quick: bool, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every preset of every experiment, as far as no device is needed: made, named, each group apart. A GPU's has more
    than a CPU's, and the full one more than the quick."""
    import llmbench.bench.experiments.heads as of_heads

    monkeypatch.setattr(of_heads, "free_bytes", lambda device: 2**37)
    asked = find_experiment(name)
    assert asked.name == name
    groups = asked.groups(Ask(quick=quick, device=torch.device(place), dtype="bf16"))
    keys = [key for group in groups for key in group.row_keys()]
    assert len(set(keys)) == len(keys)
    assert {group.experiment for group in groups} == {name}
    assert all(asked.baseline in group.names for group in groups)
    if not quick:
        fewer = asked.groups(Ask(quick=True, device=torch.device(place), dtype="bf16"))
        assert len(groups) >= len(fewer)


def test_an_unknown_experiment_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError) as problem:
        find_experiment("norm")
    assert "did you mean `norms`?" in str(problem.value.hint)


def test_sheets_share_all_but_one_field() -> None:
    asked = find_experiment("attention")
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
    common, found = sheets(rows, asked.chart)
    assert common == "4 heads"
    assert [sheet.title for sheet in found] == ["causal", "ALiBi"]
    assert [row.case["seq_len"] for row in found[0].rows] == [64, 64, 128, 128]
    against = baseline_of(rows, asked)
    assert all(rows[i].case == row.case and row.implementation == "standard" for i, row in against.items())
    assert len(against) == len(rows)
    for panel in curves(found, asked.chart):
        assert [series.label for series in panel.series] == ["flash (OOM)", "standard (OOM)"]
        assert not any(series.points for series in panel.series)
    assert isinstance(header(), Header)
