"""`benchmarks/gpu_check.sh` rehearsed on a CPU: the same run as on a GPU, with planted faults."""

from __future__ import annotations

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
from benchmarks.gpu.candidates import CandidateKernel
from benchmarks.gpu.experiments import Experiment, chosen
from benchmarks.gpu.goals import COPY, OURS
from benchmarks.gpu.machine import Machine, OutOfTimeError, open_gpu, open_rehearsal, slug, time_box
from benchmarks.gpu.measuring import rows_of
from benchmarks.gpu.session import Session
from benchmarks.gpu.workers import Suite, run_tests_and_compile
from llmbench.kernels import launching
from llmbench.kernels.pointwise.glu import KERNEL as GLU
from llmbench.measure.results import Results, Row, read

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is for machines without a GPU")


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no other processes."""
    monkeypatch.setattr(run, "run_tests_and_compile", lambda *_: None)


@pytest.fixture
def replace_experiments(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that makes the given experiments the only ones."""

    def plant(*experiments: Experiment) -> None:
        monkeypatch.setattr(run, "chosen", lambda words: list(experiments))

    return plant


def results(folder: Path) -> Results:
    (path,) = folder.glob("*.jsonl")
    return read(path)


def statuses(rows: list[Row]) -> dict[tuple[str, str], str]:
    return {(row.experiment, row.implementation): row.status for row in rows}


def experiment(name: str, **changes: Any) -> Experiment:
    (named,) = [experiment for experiment in chosen([name]) if experiment.name == name]
    return replace(named, **changes)


def test_a_rehearsal_runs_every_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Check, clock, file and table run for one experiment of each family. Candidates that need a GPU are n/a."""
    words = ["window forward", "D64 causal backward", "GQA decode", "SwiGLU", "MoE decode", "cross-entropy"]
    assert main(["--quick", "--only", *words, "--results", str(tmp_path)]) == 0
    content = results(tmp_path)
    assert not content.damaged
    assert content.headers[0].inputs["rehearsal"] is True
    assert content.headers[0].reference_measurements is not None
    by_name = statuses(content.rows)
    assert {status for (_, name), status in by_name.items() if name == OURS} == {"ok"}
    assert {name for (_, name), status in by_name.items() if status != "ok"} == {"sdpa-cudnn", "liger"}
    assert by_name["SwiGLU forward", "eager"] == "ok"
    assert by_name["attention window forward", "flex"] == by_name["SwiGLU backward", "torch.compile"] == "ok"
    ours = [row for row in content.rows if row.implementation == OURS]
    assert all(row.checks and row.measurement and row.measurement.cold for row in ours)
    assert {row.measurement.clock for row in content.rows if row.measurement} == {"cuda-events", "cuda-graph"}
    assert {row.experiment: len(row.checks) for row in ours}["attention D64 causal backward"] == 4
    flash = next(row for row in content.rows if row.implementation == "sdpa-flash")
    assert any("flash_attention" in name for name in flash.kernels)
    text = capsys.readouterr().out
    assert "REHEARSAL" in text
    assert "TFLOP/s" not in text
    assert " ms" not in text
    assert "MISS" not in text
    shown = [line for line in text[text.index("goals\n") :].splitlines() if "rehearsed" in line]
    assert len(shown) > 12
    for kind in ("*.jsonl", "*.tar.gz"):
        assert main(["--table", str(next(tmp_path.glob(kind)))]) == 0
        again = capsys.readouterr().out.splitlines()
        assert [line for line in again if "rehearsed" in line] == shown


def incorrect(**inputs: Any) -> torch.Tensor:
    """SwiGLU with one element that is not written."""
    out = GLU.run(**inputs).clone()  # type: ignore[union-attr]
    out[0, 3] = float("nan")
    return out


def test_an_incorrect_kernel_has_no_time(
    tmp_path: Path, replace_experiments: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    planted = experiment("SwiGLU forward")
    replace_experiments(
        replace(
            planted,
            candidates=[CandidateKernel(name=OURS, own=True, build=lambda *_: incorrect), *planted.candidates[1:]],
        )
    )
    assert main(["--quick", "--only", "SwiGLU", "--results", str(tmp_path)]) == 1
    by_name = statuses(results(tmp_path).rows)
    assert by_name["SwiGLU forward", OURS] == "INCORRECT"
    assert by_name["SwiGLU forward", "torch.compile"] == "ok"
    assert "INCORRECT: out: error not a number" in capsys.readouterr().out


def test_the_run_goes_on_after_a_broken_experiment(tmp_path: Path, replace_experiments: Callable[..., None]) -> None:
    """After an experiment that cannot be set up, and after a candidate that crashes."""

    def crashes(*_: Any) -> Any:
        raise ZeroDivisionError("a planted fault")

    rope = experiment("RoPE forward")
    broken = replace(rope, name="broken", extra=crashes)
    half = replace(rope, candidates=[rope.candidates[0], CandidateKernel(name="other", build=crashes)])
    replace_experiments(broken, half)
    assert main(["--quick", "--only", "RoPE", "--results", str(tmp_path)]) == 1
    rows = results(tmp_path).rows
    assert statuses(rows) == {("broken", OURS): "FAILED", (rope.name, "other"): "FAILED", (rope.name, OURS): "ok"}
    assert all(row.reason == "ZeroDivisionError: a planted fault" for row in rows if row.status == "FAILED")


def test_ctrl_c_prints_the_table(
    tmp_path: Path,
    replace_experiments: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace_experiments(experiment("RoPE forward"), experiment("SwiGLU forward"))
    measure, begun = Session.measure, []

    def interrupted(session: Session, jobs: Any) -> None:
        begun.append(jobs)
        if len(begun) == 2:
            raise KeyboardInterrupt
        measure(session, jobs)

    monkeypatch.setattr(Session, "measure", interrupted)
    assert main(["--quick", "--only", "rope", "--ours", "--results", str(tmp_path)]) == 130
    assert statuses(results(tmp_path).rows) == {("RoPE forward", OURS): "ok", ("RoPE forward", COPY): "ok"}
    text = capsys.readouterr().out
    assert text.index("goals\n") > text.index("interrupted")


def test_a_candidate_that_takes_too_long_is_not_measured() -> None:
    with pytest.raises(OutOfTimeError, match="a nap took more than"), time_box(0.05, "a nap"):
        time.sleep(5)

    def slow(*_: Any) -> Any:
        time.sleep(5)

    rope = experiment("RoPE forward")
    planted = replace(rope, candidates=[rope.candidates[0], CandidateKernel(name="slow", build=slow)])
    with open_rehearsal() as machine:
        rows = list(rows_of(planted, rope.tiny, [OURS, "slow"], replace(machine, candidate_s=1.0), {}))
    assert statuses(rows) == {(rope.name, OURS): "ok", (rope.name, "slow"): "n/a"}


def test_configurations_are_ranked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--tune", "glu", "--results", str(tmp_path)]) == 0
    content = results(tmp_path)
    assert {(row.experiment, row.case["choice"], row.status) for row in content.rows} == {
        ("tune glu forward", "glu_forward", "ok"),
        ("tune glu backward", "glu_backward", "ok"),
    }
    shipped, other = sorted(row.implementation for row in content.rows if row.experiment == "tune glu forward")
    assert shipped.startswith("0: BLOCK=256 warps=1")
    assert other.startswith("2: BLOCK=2048")  # the second is the first at this width
    assert "tune glu forward · rows=3, width=37 · glu_forward" in capsys.readouterr().out


def test_an_incorrect_configuration_has_no_rank() -> None:
    def run_incorrectly(**inputs: Any) -> Any:
        out = GLU.run(**inputs)
        chosen = launching._preferred.get("glu_forward", 0)
        return out * 1.1 if chosen and isinstance(out, torch.Tensor) else out

    kernel = replace(GLU, run=run_incorrectly, differentiable=())
    (choice,) = tuning.choices([kernel], 90, torch.bfloat16, rehearsal=True)
    with open_rehearsal() as machine:
        rows = list(tuning.rows_of(choice, choice.names, machine))
    assert {row.implementation[0]: row.status for row in rows} == {"0": "ok", "2": "INCORRECT"}
    assert "INCORRECT: result 0: error" in tuning.rankings(rows, rehearsal=True)


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


def test_several_processes_share_the_tests(tmp_path: Path) -> None:
    """Each test runs once and its outcome is recorded. A file that cannot be loaded is a failure; late tests have not
    passed."""
    path, unloadable = tmp_path / "test_planted.py", tmp_path / "test_unloadable.py"
    path.write_text(SUITE)
    unloadable.write_text("import nothing_of_that_name\n")
    report = run_tests_and_compile(
        Suite("planted", (str(path), str(unloadable), "--continue-on-collection-errors"), 2), [], 60.0
    )
    assert report is not None
    assert report.outcomes["passed"] == 2
    assert report.outcomes["skipped"] == 1
    assert sum("test_fails: assert 1 == 2" in failure for failure in report.failures) == 1
    assert sum("ValueError: no fixture" in failure for failure in report.failures) == 1
    assert any("test_unloadable.py" in failure for failure in report.failures)
    row = report.row()
    assert (row.status, row.extra["passed"]) == ("INCORRECT", 2)
    late = run_tests_and_compile(Suite("late", (str(path),), 1), [], -1.0)
    assert late is not None
    assert late.outcomes.get("passed", 0) == 0
    assert late.row().status == "n/a"


def test_a_dying_process_is_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "test_planted.py"
    path.write_text("import os\ndef test_dies(): os.abort()\n")
    report = run_tests_and_compile(Suite("dying", (str(path),), 1), [], 60.0)
    assert report is not None
    assert report.row().status == "INCORRECT"
    assert report.failures[0].startswith("pytest ended with -6")


def test_wrong_input_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "ropes"]) == 2
    assert "did you mean `rope`?" in capsys.readouterr().err
    assert main(["--only", "xyz"]) == 2
    assert "choose from attention, decode, mla, norm, rope, glu, moe, loss, attention D128 full" in (
        capsys.readouterr().err
    )
    assert main([]) == 3
    assert "--quick rehearses on a CPU" in capsys.readouterr().err
    assert main(["--tune", "glue"]) == 2
    assert "did you mean `glu`" in capsys.readouterr().err


def test_a_simulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The set-up of a GPU, without one."""
    used: list[Any] = []
    simulated = {
        "is_available": lambda: True,
        "current_device": lambda: 0,
        "get_device_name": lambda device: "NVIDIA H200",
        "Stream": lambda device: device,
    }
    for name, function in simulated.items():
        monkeypatch.setattr(torch.cuda, name, function)

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
    with open_gpu() as machine:
        assert isinstance(machine, Machine)
        assert (machine.device, machine.rehearsal, machine.compiler) == (torch.device("cuda:0"), False, "inductor")
        assert torch.get_float32_matmul_precision() == "high"
    assert used == [torch.device("cuda:0")]
    assert torch.get_float32_matmul_precision() == "highest"
    assert slug(machine.name) == "nvidia-h200"
