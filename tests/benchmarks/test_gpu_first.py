"""The first run on a new machine, rehearsed on a CPU with planted faults: each fault costs one row."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import run, summary
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.archive import pack, read_results, unpack
from benchmarks.gpu.candidates import CandidateKernel
from benchmarks.gpu.experiments import Experiment, chosen
from benchmarks.gpu.goals import COPY, OURS
from benchmarks.gpu.jobs import full_steps
from benchmarks.gpu.machine import FIRST, open_rehearsal
from benchmarks.gpu.packages import missing
from benchmarks.gpu.rehearsal import WallClockCuda
from benchmarks.gpu.workers import ROOT, run_once
from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.measure.results import Row, read
from llmbench.measure.store import Store
from tests.measure.rows import header, timed
from tests.own_process import run_module

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="a rehearsal is for machines without a GPU")

Op = Callable[..., Any]


@pytest.fixture
def first_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, list[Row]]]:
    """Return a function that runs `--quick --first` over the given experiments, and returns the exit code and the
    rows."""

    def started(*experiments: Experiment, options: tuple[str, ...] = (), **limits: float) -> tuple[int, list[Row]]:
        monkeypatch.setattr(run, "chosen", lambda words: list(experiments))
        monkeypatch.setattr(run, "FIRST", run.FIRST._replace(**{"stall_s": 1.5, "least_s": 0.0} | limits))
        code = main(["--quick", "--first", *options, "--results", str(tmp_path)])
        (path,) = tmp_path.glob("*.jsonl")
        (archive,) = tmp_path.glob("*.tar.gz")
        rows = read(path).rows
        assert read_results(archive).rows == rows
        return code, rows

    return started


def experiment(name: str, **ops: Op) -> Experiment:
    """The experiment of that name, in which candidates run other ops: `ours=op` or `eager=op`."""
    (named,) = [experiment for experiment in chosen([name]) if experiment.name == name]
    candidates = []
    for candidate in named.candidates:
        op = ops.get(candidate.name)
        if op is not None:
            assert isinstance(candidate, CandidateKernel)
            candidate = replace(candidate, build=lambda case, machine, op=op: op)
        candidates.append(candidate)
    return replace(named, candidates=candidates)


def hang(**_: Any) -> Any:
    """Stop this process, as a kernel that never ends does. Python cannot interrupt it."""
    os.kill(os.getpid(), signal.SIGSTOP)


def leave(**_: Any) -> Any:
    os._exit(7)


def abort(**_: Any) -> Any:
    os.abort()


def exhaust(**_: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 TiB")


def lose_context(**_: Any) -> Any:
    """Fail as a kernel with an illegal memory access does: every later call of CUDA fails too."""

    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    WallClockCuda.synchronize = fail  # type: ignore[method-assign] # only in this child process
    fail()


def wrong(x: torch.Tensor, **_: Any) -> torch.Tensor:
    return torch.zeros_like(x)


def rows_named(rows: list[Row], title: str, name: str) -> list[Row]:
    return [row for row in rows if (row.experiment, row.implementation) == (title, name)]


def test_each_fault_costs_one_row(first_run: Callable[..., tuple[int, list[Row]]]) -> None:
    """A hang, a process that ends, an abort, a lost context, a wrong result, no memory. All other candidates have
    times, also those of the same case."""
    faults = {
        ("SwiGLU forward", OURS): (hang, "its process was killed: no progress in 4 s"),
        ("RoPE forward", "eager"): (leave, "its process was ended with exit code 7"),
        ("RMSNorm forward", OURS): (wrong, "out: error"),
        ("linear cross-entropy both", OURS): (exhaust, "CUDA out of memory"),
        ("linear cross-entropy both", "eager"): (
            abort,
            "its process was killed by SIGABRT: Fatal Python error: Aborted",
        ),
        ("GQA decode", OURS): (lose_context, "the GPU's context is lost"),
    }
    experiments = [
        experiment(title, **{name: op for (other, name), (op, _) in faults.items() if other == title})
        for title in dict.fromkeys(title for title, _ in faults)
    ]
    start = time.monotonic()
    code, rows = first_run(*experiments, experiment("SwiGLU backward"), stall_s=4.0)
    assert code == 1
    for (title, name), (op, reason) in faults.items():
        matching = rows_named(rows, title, name)
        assert [row.status for row in matching] == [{wrong: "INCORRECT", exhaust: "OOM"}.get(op, "FAILED")]
        assert reason in str(matching[0].reason)
    others = [
        row for row in rows if (row.experiment, row.implementation) not in faults and row.implementation != "liger"
    ]
    assert {row.status for row in others} == {"ok"}  # liger-kernel needs a GPU
    assert Counter(row.implementation for row in others if row.experiment == "RoPE forward") == {OURS: 2, COPY: 2}
    assert rows_named(rows, "GQA decode", "sdpa")
    assert rows_named(rows, "SwiGLU backward", OURS)  # the same family as the kernel that hangs
    assert time.monotonic() - start < 60


def test_the_most_valuable_rows_come_first(first_run: Callable[..., tuple[int, list[Row]]]) -> None:
    names = ("RoPE forward", "SwiGLU backward", "SwiGLU forward")
    code, rows = first_run(*map(experiment, names))
    assert code == 0
    assert [(row.experiment, row.implementation) for row in rows[:4]] == [
        ("RoPE forward", OURS),
        ("RoPE forward", COPY),
        ("SwiGLU forward", OURS),
        ("SwiGLU forward", COPY),
    ]
    assert {row.implementation for row in rows[4:8]} == {OURS, "eager", "liger", COPY}
    assert {row.experiment for row in rows[4:8]} == {"RoPE forward"}
    assert {row.experiment for row in rows[-4:]} == {"SwiGLU backward"}
    assert "torch.compile" not in {row.implementation for row in rows}


def test_a_run_of_only_hanging_kernels_ends_in_the_promised_time(
    first_run: Callable[..., tuple[int, list[Row]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels for which no time is left get a row that says so."""
    names = ("RoPE forward", "SwiGLU forward", "RMSNorm forward", "GQA decode")
    monkeypatch.setattr(run, "RESERVE_S", 1.0)
    start = time.monotonic()
    code, rows = first_run(*(experiment(name, ours=hang) for name in names), total_s=6.0, least_s=1.0, stall_s=1.2)
    assert time.monotonic() - start < 6.0 + 2.0  # the machine of the tests is busy
    assert code == 1
    assert {row.experiment for row in rows} == set(names)
    assert {row.status for row in rows if row.implementation == OURS} <= {"FAILED", "n/a"}
    assert any(str(row.reason).startswith("no time was left") for row in rows)


def test_only_our_kernels(first_run: Callable[..., tuple[int, list[Row]]]) -> None:
    _, rows = first_run(experiment("RoPE forward"), options=("--ours",))
    assert [row.implementation for row in rows] == [OURS, COPY]


def test_only_experiments_that_missed_or_failed_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run reads the archive of the first run."""
    experiments = [experiment("RoPE forward", ours=exhaust), experiment("SwiGLU forward")]
    monkeypatch.setattr(run, "chosen", lambda words: experiments)
    monkeypatch.setattr("benchmarks.gpu.goals.judge", lambda rows: [])  # the times of a rehearsal have no meaning
    options = ["--quick", "--ours", "--no-tests"]
    assert main([*options, "--results", str(tmp_path / "1")]) == 1
    (archive,) = (tmp_path / "1").glob("*.tar.gz")
    experiments[0] = experiment("RoPE forward")
    assert main([*options, "--since", str(archive), "--results", str(tmp_path / "2")]) == 0
    (path,) = (tmp_path / "2").glob("*.jsonl")
    assert {row.experiment for row in read(path).rows} == {"RoPE forward"}
    capsys.readouterr()
    assert main([*options, "--since", str(path), "--results", str(tmp_path / "3")]) == 2
    assert "nothing to run" in capsys.readouterr().err


def test_assemblers_are_compared(
    tmp_path: Path, first_run: Callable[..., tuple[int, list[Row]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each assembler has its own rows, and the environment makes Triton use it."""
    other = tmp_path / "ptxas"
    other.write_text("#!/bin/sh\necho Cuda compilation tools, release 13.4, V13.4.59\n")
    other.chmod(0o755)

    def name_assembler(**_: Any) -> Any:
        raise CannotRunError(os.environ.get("TRITON_PTXAS_PATH", "none"))

    planted = experiment("RoPE forward", ours=name_assembler)
    code, rows = first_run(planted, options=("--ptxas", "default", str(other)))
    assert code == 0
    assert [(row.implementation, row.case["ptxas"], row.reason) for row in rows if row.implementation == OURS] == [
        (OURS, "default", "none"),
        (OURS, "13.4.59", str(other)),
    ]
    text = capsys.readouterr().out
    assert f"· ours: ptxas default: n/a: none; ptxas 13.4.59: n/a: {other}" in text
    timed_rows = [
        Row(
            experiment="x",
            case={"shape": "s", "ptxas": version},
            implementation=OURS,
            status="ok",
            measurement=timed(s),
        )
        for version, s in (("12.8.93", 2e-3), ("13.4.59", 1.5e-3))
    ]
    (_, line) = summary.assemblers(timed_rows, rehearsal=False).splitlines()
    assert line == "  x · s · ours: ptxas 12.8.93: 2 ms; ptxas 13.4.59: 1.5 ms (0.750×)"
    folder = tmp_path / "second run"  # results of two runs in one second would have one name
    folder.mkdir()
    assert main(["--quick", "--ptxas", str(tmp_path / "absent"), "--results", str(folder)]) == 2
    assert "cannot run the assembler" in capsys.readouterr().err


def test_kernels_are_compiled_ahead() -> None:
    """Without a GPU, each kernel once, and so that a launch with tensors finds the compiled code."""
    lines = run_module("tests.benchmarks.compiled_ahead", cwd=ROOT).stdout.splitlines()
    assert lines == ["norm_forward", "[] 1", "[] 1 True"]


def test_torch_compile_is_run_ahead(capsys: pytest.CaptureFixture[str]) -> None:
    (named,) = [experiment for experiment in chosen(["SwiGLU"]) if experiment.name == "SwiGLU forward"]
    ((job,),) = full_steps([named], lambda candidate: True, rehearsal=True)
    assert job.has_compiled
    ran = []

    def record_run(candidate: Any) -> None:
        ran.append(candidate.name)
        run_once(candidate)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "run_once", record_run)
        run._compile_by_torch([job], open_rehearsal, FIRST, None)  # type: ignore[arg-type]
    assert ran == ["torch.compile"]
    assert capsys.readouterr().out == ""


def test_a_large_archive_loses_samples_and_says_so(tmp_path: Path) -> None:
    path, log = tmp_path / "rows.jsonl", tmp_path / "1.log"
    random = torch.rand(400, generator=torch.Generator().manual_seed(0)).tolist()
    row = Row(experiment="x", case={}, implementation=OURS, status="ok", measurement=timed(*random))
    with Store(path, header()) as store:
        store.write([row])
    log.write_bytes(os.urandom(3000))
    whole, short = tmp_path / "whole.tar.gz", tmp_path / "short.tar.gz"
    assert pack(whole, [path, log]) == []
    (row_read,) = read_results(whole).rows
    assert row_read == row
    notes = pack(short, [path, log], most_bytes=5000)
    assert short.stat().st_size <= 5000
    (row_read,) = read_results(short).rows
    assert row_read.measurement is not None
    assert row_read.measurement.samples_s == tuple(random[:10])
    assert row_read.measurement.notes == ("only the first 10 of 400 samples are kept",)
    assert notes == ["raw samples: only the first 10 of each row are in this archive"]
    (tmp_path / "out").mkdir()
    assert {file.name for file in unpack(short, tmp_path / "out")} == {"rows.jsonl", "1.log", "notes.txt"}
    assert len(pack(short, [path, log], most_bytes=2500)) == 2  # without the logs
    with pytest.raises(LLMBenchError, match="larger than 100 bytes"):
        pack(short, [path, log], most_bytes=100)


def test_missing_packages_are_a_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert missing() is None
    assert "run `benchmarks/gpu_wheels.sh FOLDER`" in str(missing(["rich", "no_such_package"]))
    monkeypatch.setattr("benchmarks.gpu.packages.find_spec", lambda name: None if name == "triton" else name)
    assert main(["--first"]) == 3
    text = capsys.readouterr().err
    assert text.startswith("error: missing Python package: triton\n")
    assert "install triton on this machine" in text
