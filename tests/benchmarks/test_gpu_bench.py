"""`benchmarks/gpu_bench.sh` rehearsed on a CPU: experiments one after another, within a time limit."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import sweeps
from benchmarks.gpu.__main__ import main as gpu_check
from benchmarks.gpu.sweeps import main, warm
from llmbench.bench.experiments import find_experiment
from llmbench.measure.results import Row, read
from llmbench.measure.store import Store
from tests.measure.rows import header, timed

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is for machines without a GPU")

Capture = pytest.CaptureFixture[str]


def test_a_finished_experiment_is_not_run_again(tmp_path: Path, capsys: Capture) -> None:
    assert main(["--quick", "--only", "heads", "--results", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("heads: done; 8 ok")
    names = {"bench-heads.jsonl", "bench-heads.txt", "gpu_bench.tar.gz"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert "MLA" in (tmp_path / "bench-heads.txt").read_text(encoding="utf-8")
    assert main(["--quick", "--seconds", "0", "--results", str(tmp_path)]) == 0
    undone = ", ".join(name for name in sweeps.SHARES if name != "heads")
    late = f"not measured, because no time was left: {undone}; run this command again\n"
    assert capsys.readouterr().out == late
    # Another machine goes on from the archive.
    other = tmp_path / "other"
    archive = ["--since", str(tmp_path / "gpu_bench.tar.gz"), "--results", str(other)]
    assert main(["--quick", "--seconds", "0", *archive]) == 0
    assert capsys.readouterr().out == late
    assert {path.name for path in other.iterdir()} == names - {"gpu_bench.tar.gz"}
    assert gpu_check(["bench", "--quick", "--since", str(tmp_path / "absent.tar.gz"), "--results", str(other)]) == 2
    assert "cannot read the archive" in capsys.readouterr().err


def test_a_slice_takes_on_only_what_it_has_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Each experiment gets a share of the time that is worth its start. The next slice begins with the next one."""
    boxes: dict[str, float] = {}

    def bench(name: str, folder: Path, box_s: float, *, quick: bool) -> int:
        boxes[name] = box_s
        now[0] += box_s
        (folder / f"bench-{name}.txt").write_text("done")
        return 0

    now = [0.0]
    monkeypatch.setattr(sweeps, "_bench", bench)
    monkeypatch.setattr("benchmarks.gpu.machine.time.monotonic", lambda: now[0])
    assert main(["--quick", "--results", str(tmp_path)]) == 0
    assert "not measured, because no time was left: textbook" in capsys.readouterr().out
    assert set(boxes) == {"heads", "moe"}
    assert all(60 <= box_s <= 180 for box_s in boxes.values())
    assert sum(boxes.values()) <= 240 - sweeps.GRACE_S
    assert main(["--quick", "--results", str(tmp_path)]) == 0
    assert list(boxes) == ["heads", "moe", "textbook", "train"]


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts background jobs with SIGINT ignored. Child processes inherit that, and would run on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_experiment_is_interrupted_at_its_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(sweeps, "LEAST_S", -math.inf)  # begins although no time is left
    monkeypatch.setattr(sweeps, "_command", lambda *_, **__: ["sleep", "100"])
    assert main(["--quick", "--only", "heads", "--seconds", "0", "--results", str(tmp_path)]) == 0
    assert "heads: not done (130); no rows" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"bench-heads.unfinished.txt", "gpu_bench.tar.gz"}


def test_a_group_that_hangs_is_left_out_of_the_next_slice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A process that ignores the interruption is killed. The first group without rows is blamed."""
    path = tmp_path / "bench-heads.jsonl"
    first, second, *_ = find_experiment("heads").groups(sweeps._ask(True))
    timed_rows = [
        Row(experiment="heads", case=dict(first.case), implementation=name, status="ok", measurement=timed(1.0))
        for name in first.names
    ]
    with Store(path, header()) as store:
        store.write(timed_rows)
    monkeypatch.setattr(sweeps, "LEAST_S", -math.inf)
    monkeypatch.setattr(sweeps, "GRACE_S", 0.3)
    monkeypatch.setattr(sweeps, "_command", lambda *_, **__: ["sh", "-c", "trap '' INT; sleep 100"])
    assert main(["--quick", "--only", "heads", "--seconds", "0.6", "--results", str(tmp_path)]) == 1
    assert "one of these hangs" in capsys.readouterr().out
    rows = read(path).rows
    assert rows[: len(timed_rows)] == timed_rows
    assert [row.key for row in rows[len(timed_rows) :]] == second.row_keys()
    assert all(row.ended_session for row in rows[len(timed_rows) :])


def test_wrong_rows_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def bench(name: str, folder: Path, box_s: float, *, quick: bool) -> int:
        with Store(folder / f"bench-{name}.jsonl", header()) as store:
            for implementation, status in (("a", "INCORRECT"), ("b", "OOM"), ("c", "n/a")):
                reason = f"{status} for a reason"
                store.write(
                    [Row(experiment=name, case={}, implementation=implementation, status=status, reason=reason)]
                )
        return 0

    monkeypatch.setattr(sweeps, "_bench", bench)
    assert main(["--quick", "--only", "moe", "--results", str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "moe: done; 1 INCORRECT, 1 OOM, 1 n/a" in text
    assert "a at {}: INCORRECT, INCORRECT for a reason" in text
    assert "OOM for a reason" not in text


def test_compiling_runs_a_share_of_all_candidates_and_prints_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    warm(["heads"], 0, 2, quick=True)  # half of its groups
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("llmbench.bench.candidates.call_of", lambda *_: 1 / 0)
    warm(["heads"], 1, 2, quick=True)
    assert capsys.readouterr().out == "".join(f"{name}: division by zero\n" for name in ("MHA", "GQA", "MQA", "MLA"))


def test_wrong_input_is_explained(capsys: Capture) -> None:
    assert main(["--only", "head"]) == 2
    assert "did you mean `heads`?" in capsys.readouterr().err
    assert main([]) == 3
    assert "--quick rehearses on a CPU" in capsys.readouterr().err
