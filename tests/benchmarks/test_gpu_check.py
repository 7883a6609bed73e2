"""`benchmarks/gpu_check.sh` rehearsed on a CPU: the run that a GPU will see, with faults planted."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import machine as machine_file
from benchmarks.gpu import run, tuning
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.contenders import Contender
from benchmarks.gpu.experiments import Experiment, chosen
from benchmarks.gpu.goals import OURS
from benchmarks.gpu.machine import Machine, OutOfTimeError, a_gpu, a_rehearsal, slug, time_box
from benchmarks.gpu.measuring import rows_of
from benchmarks.gpu.workers import Suite, prepare
from llmbench.kernels import launching
from llmbench.kernels.pointwise.glu import KERNEL as GLU
from llmbench.measure.results import Results, Row, read

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the rehearsal is for where there is no GPU")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other processes, but where they are tested."""
    monkeypatch.setattr(run, "prepare", lambda *_: None)


@pytest.fixture
def stands_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let these experiments be all there are."""

    def plant(*experiments: Experiment) -> None:
        monkeypatch.setattr(run, "chosen", lambda words: list(experiments))

    return plant


def results(folder: Path) -> Results:
    (path,) = folder.iterdir()
    return read(path)


def statuses(rows: list[Row]) -> dict[tuple[str, str], str]:
    return {(row.experiment, row.implementation): row.status for row in rows}


def experiment(name: str, **changes: Any) -> Experiment:
    (found,) = [each for each in chosen([name]) if each.name == name]
    return replace(found, **changes)


def test_a_rehearsal_goes_the_whole_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through gate, clock, file and table, for one experiment of each family; what a CPU lacks is n/a."""
    words = ["window forward", "D64 causal backward", "GQA decode", "SwiGLU", "MoE decode", "cross-entropy"]
    assert main(["--quick", "--only", *words, "--results", str(tmp_path)]) == 0
    found = results(tmp_path)
    assert not found.damaged
    assert found.headers[0].inputs["rehearsal"] is True
    assert found.headers[0].reference_measurements is not None
    seen = statuses(found.rows)
    assert {status for (_, name), status in seen.items() if name == OURS} == {"ok"}
    assert {name for (_, name), status in seen.items() if status != "ok"} == {"sdpa-cudnn", "liger"}
    assert seen["attention window forward", "flex"] == seen["SwiGLU backward", "torch.compile"] == "ok"
    ours = [row for row in found.rows if row.implementation == OURS]
    assert all(row.checks and row.measurement and row.measurement.cold for row in ours)
    assert {row.measurement.clock for row in found.rows if row.measurement} == {"cuda-events", "cuda-graph"}
    assert {row.experiment: len(row.checks) for row in ours}["attention D64 causal backward"] == 4
    flash = next(row for row in found.rows if row.implementation == "sdpa-flash")
    assert any("flash_attention" in name for name in flash.kernels)
    said = capsys.readouterr().out
    assert "REHEARSAL" in said
    assert "TFLOP/s" not in said
    assert " ms" not in said
    assert "MISS" not in said
    shown = [line for line in said[said.index("goals\n") :].splitlines() if "rehearsed" in line]
    assert len(shown) > 12
    assert main(["--table", str(next(tmp_path.iterdir()))]) == 0
    again = capsys.readouterr().out.splitlines()
    assert [line for line in again if "rehearsed" in line] == shown


def wrong(**inputs: Any) -> torch.Tensor:
    """SwiGLU with one element that was never written."""
    out = GLU.run(**inputs).clone()  # type: ignore[union-attr]
    out[0, 3] = float("nan")
    return out


def test_a_wrong_kernel_is_no_time(
    tmp_path: Path, stands_for: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    given = experiment("SwiGLU forward")
    stands_for(replace(given, contenders=[Contender(name=OURS, build=lambda *_: wrong), *given.contenders[1:]]))
    assert main(["--quick", "--only", "SwiGLU", "--results", str(tmp_path)]) == 1
    seen = statuses(results(tmp_path).rows)
    assert seen["SwiGLU forward", OURS] == "INCORRECT"
    assert seen["SwiGLU forward", "torch.compile"] == "ok"
    assert "INCORRECT: out: error not a number" in capsys.readouterr().out


def test_a_broken_experiment_ends_nothing(tmp_path: Path, stands_for: Callable[..., None]) -> None:
    """Neither one that cannot be set up, nor a contender that crashes."""

    def crashes(*_: Any) -> Any:
        raise ZeroDivisionError("a planted fault")

    rope = experiment("RoPE forward")
    broken = replace(rope, name="broken", figures=crashes)
    half = replace(rope, contenders=[rope.contenders[0], Contender(name="rival", build=crashes)])
    stands_for(broken, half)
    assert main(["--quick", "--only", "RoPE", "--results", str(tmp_path)]) == 1
    rows = results(tmp_path).rows
    assert statuses(rows) == {("broken", OURS): "FAILED", (rope.name, "rival"): "FAILED", (rope.name, OURS): "ok"}
    assert all(row.reason == "ZeroDivisionError: a planted fault" for row in rows if row.status == "FAILED")


def test_a_lost_context_is_left_behind(
    tmp_path: Path, stands_for: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is replaced by one that goes on in the same file, with the next experiment."""
    stands_for(experiment("RoPE forward"), experiment("RoPE backward"))
    monkeypatch.setattr(run, "_alive", lambda machine: False)
    monkeypatch.setattr(os, "execv", lambda program, arguments: sys.exit(",".join(arguments)))
    with pytest.raises(SystemExit) as end:
        main(["--quick", "--only", "RoPE", "--results", str(tmp_path)])
    (path,) = tmp_path.iterdir()
    said = str(end.value.code).split(",")
    assert said[3:5] == ["--resume", str(path)]
    assert said[-2:] == ["--only", "RoPE"]
    monkeypatch.undo()
    stands_for(experiment("RoPE forward"), experiment("RoPE backward"))
    assert main(["--quick", "--only", "RoPE", "--resume", str(path)]) == 0
    ours = [row.experiment for row in read(path).rows if row.implementation == OURS]
    assert ours == ["RoPE forward", "RoPE backward"]


def test_ctrl_c_leaves_a_table(
    tmp_path: Path, stands_for: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    rope = experiment("RoPE backward")
    stands_for(experiment("RoPE forward"), replace(rope, contenders=[Contender(name=OURS, build=stopped)]))
    assert main(["--quick", "--only", "RoPE", "--results", str(tmp_path)]) == 130
    assert statuses(results(tmp_path).rows)["RoPE forward", OURS] == "ok"
    said = capsys.readouterr().out
    assert "interrupted" in said
    assert said.index("goals\n") > said.index("interrupted")


def test_time_that_is_up(tmp_path: Path) -> None:
    """A contender that takes too long is n/a, and what is not begun says so."""
    with pytest.raises(OutOfTimeError, match="a nap took more than"), time_box(0.05, "a nap"):
        time.sleep(5)

    def slow(*_: Any) -> Any:
        time.sleep(5)

    rope = experiment("RoPE forward")
    given = replace(rope, contenders=[rope.contenders[0], Contender(name="slow", build=slow)])
    with a_rehearsal() as machine:
        rows = list(rows_of(given, replace(machine, rival_s=1.0), lambda: 100.0))
        late = list(rows_of(given, machine, lambda: 1.0))
    assert statuses(rows) == {(rope.name, OURS): "ok", (rope.name, "slow"): "n/a"}
    assert [(row.implementation, row.reason) for row in late] == [(OURS, "no time was left")]


def test_configurations_are_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--tune", "glu", "--results", str(tmp_path)]) == 0
    found = results(tmp_path)
    assert {(row.experiment, row.case["choice"], row.status) for row in found.rows} == {
        ("tune glu forward", "glu_forward", "ok"),
        ("tune glu backward", "glu_backward", "ok"),
    }
    shipped, other = sorted(row.implementation for row in found.rows if row.experiment == "tune glu forward")
    assert shipped.startswith("0: BLOCK=256 warps=1")
    assert other.startswith("2: BLOCK=2048")  # the second is the first at this width
    assert "tune glu forward · rows=3, width=37 · glu_forward" in capsys.readouterr().out


def test_a_wrong_configuration_has_no_rank() -> None:
    def run_wrong(**inputs: Any) -> Any:
        out = GLU.run(**inputs)
        chosen = launching._preferred.get("glu_forward", 0)
        return out * 1.1 if chosen else out  # type: ignore[operator]

    with a_rehearsal() as machine:
        of = replace(GLU, run=run_wrong, differentiable=())
        ((choice, rows),) = tuning.tuned([of], machine, lambda: 100.0)
    assert {row.implementation[0]: row.status for row in rows} == {"0": "ok", "2": "INCORRECT"}
    assert "INCORRECT: result 0: error" in tuning.ranked(choice, rows, rehearsal=True)


SUITE = """
import os, signal, time
import pytest

def test_passes(): pass
def test_fails(): assert 1 == 2
@pytest.fixture
def broken(): raise ValueError("no fixture")
def test_has_no_fixture(broken): pass
@pytest.mark.skip(reason="not today")
def test_skips(): pass
def test_naps(): time.sleep(0.1)
"""


def test_tests_run_in_shares(tmp_path: Path) -> None:
    """Every test once, each outcome noted; a file that cannot be loaded is a failure, and late tests are not passed."""
    path, unloadable = tmp_path / "test_planted.py", tmp_path / "test_unloadable.py"
    path.write_text(SUITE)
    unloadable.write_text("import nothing_of_that_name\n")
    found = prepare(Suite("planted", (str(path), str(unloadable), "--continue-on-collection-errors"), 2), [], 60.0)
    assert found is not None
    assert found.outcomes["passed"] == 2
    assert found.outcomes["skipped"] == 1
    assert sum("test_fails: assert 1 == 2" in each for each in found.failures) == 1
    assert sum("ValueError: no fixture" in each for each in found.failures) == 1
    assert any("test_unloadable.py" in each for each in found.failures)
    row = found.row()
    assert (row.status, row.extra["passed"]) == ("INCORRECT", 2)
    late = prepare(Suite("late", (str(path),), 1), [], -1.0)
    assert late is not None
    assert late.outcomes.get("passed", 0) == 0
    assert late.row().status == "n/a"


def test_a_dying_process_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "test_planted.py"
    path.write_text("import os\ndef test_dies(): os.abort()\n")
    found = prepare(Suite("dying", (str(path),), 1), [], 60.0)
    assert found is not None
    assert found.row().status == "INCORRECT"
    assert found.failures[0].startswith("pytest ended with -6")


def test_what_cannot_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "ropes"]) == 2
    assert "there is attention D128 full forward" in capsys.readouterr().err
    assert main([]) == 3
    assert "--quick rehearses on a CPU" in capsys.readouterr().err
    assert main(["--tune", "glue"]) == 2
    assert "did you mean `glu`" in capsys.readouterr().err


def test_a_gpu_by_its_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as it goes without one."""
    used: list[Any] = []
    stand_ins = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_name": lambda device: "NVIDIA H200",
        "Stream": lambda device: device,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)

    class StreamContext:
        def __init__(self, stream: Any) -> None:
            used.append(stream)

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(torch.cuda, "stream", StreamContext)
    monkeypatch.setattr(machine_file, "CudaClock", lambda device: ("clock", device))
    monkeypatch.setattr(machine_file, "_names_kernels", lambda device: (False, ["no profiler"]))
    with a_gpu() as machine:
        assert isinstance(machine, Machine)
        assert (machine.device, machine.rehearsal, machine.compiler) == (torch.device("cuda:0"), False, "inductor")
        assert torch.get_float32_matmul_precision() == "high"
    assert used == [torch.device("cuda:0")]
    assert torch.get_float32_matmul_precision() == "highest"
    assert slug(machine.name) == "nvidia-h200"
