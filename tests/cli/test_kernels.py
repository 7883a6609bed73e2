"""`llmbench kernels`, each command in its own process: the import decides whether kernels are interpreted."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pytest

from llmbench.cli import run
from llmbench.cli.kernels.progress import with_progress
from tests.own_process import run_module

pytest.importorskip("triton")


def llmbench(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command without the variable that the tests themselves set."""
    return run_module("llmbench", *arguments, **environment)


def test_list_names_every_kernel() -> None:
    from llmbench.kernels.registry import KERNELS

    process = llmbench("kernels", "list", "--format", "json")
    rows = json.loads(process.stdout)["kernels"]
    assert [row["kernel"] for row in rows] == list(KERNELS)
    assert all(row["cases"] and row["shapes"] and row["dtypes"] for row in rows)


def test_list_without_triton_names_every_kernel_and_its_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmbench.kernels.registry import KERNELS, load_kernel

    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "triton" else find(name))
    assert run(["kernels", "list", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["kernels"]
    assert {row["kernel"]: row["summary"] for row in rows} == {name: load_kernel(name).summary for name in KERNELS}
    assert {row["cases"] for row in rows} == {row["dtypes"] for row in rows} == {None}
    assert run(["kernels", "list"]) == 0
    assert "are unknown, because triton is not installed" in capsys.readouterr().out


def test_check_on_a_cpu_is_interpreted() -> None:
    process = llmbench("kernels", "check", "glu", "--device", "cpu", "--seeds", "1")
    assert process.returncode == 0, process.stderr
    assert "The errors of 3 of 3 rows are within budget, in Triton's interpreter." in process.stdout
    rows = json.loads(llmbench("kernels", "check", "glu", "--dtype", "fp32", "--format", "json").stdout)["kernels"]
    assert [row["dtype"] for row in rows] == ["float32"]
    assert 0 < rows[0]["error"] <= rows[0]["budget"]


def test_random_cases_are_checked() -> None:
    process = llmbench("kernels", "check", "glu", "--device", "cpu", "--fuzz", "1", "--seed", "3", "--format", "json")
    assert process.returncode == 0, process.stderr
    answer = json.loads(process.stdout)
    assert (answer["inputs"]["fuzz_s"], answer["inputs"]["seed"]) == (1, 3)
    assert sum(row["trials"] for row in answer["kernels"]) >= 1
    assert all(row["passed"] and row["failures"] == [] for row in answer["kernels"])


def test_failures_of_random_cases_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from llmbench.kernels.proof import fuzz
    from llmbench.kernels.proof.accuracy import Verdict

    monkeypatch.setattr(fuzz, "_run", lambda *_: [Verdict("dq", 0.5, 1e-3, 2e-3, False)])
    assert run(["kernels", "check", "glu", "--device", "cpu", "--fuzz", "1"]) == 1
    text = capsys.readouterr().out
    assert "WRONG glu: dq has the error 0.5, its budget is 0.002" in text
    assert "  repeat('glu', '" in text
    assert "  smaller: repeat('glu', '" in text


def test_inspect_compiles_without_a_gpu() -> None:
    """TRITON_INTERPRET changes nothing."""
    arguments = ("inspect", "glu", "--arch", "sm_80,sm_90", "--shipped", "--jobs", "1", "--format", "json")
    process = llmbench("kernels", *arguments, TRITON_INTERPRET="1")
    assert process.returncode == 0, process.stderr
    rows = json.loads(process.stdout)["configurations"]
    assert len(rows) == 2 * 6, "forward and backward of three shapes, on two architectures"
    assert all(row["shipped"] for row in rows)
    assert {row["arch"] for row in rows} == {"sm_80", "sm_90"}
    assert {row["function"] for row in rows} == {"glu_forward", "glu_backward"}
    for row in rows:
        assert 16 <= row["registers"] <= 255
        assert row["spilled_bytes"] == 0
        assert row["instruction"] is None
        assert 0 < row["occupancy"] <= 1
        assert row["faults"] == []


def test_inspect_compiles_all_candidates() -> None:
    """In this process. Examples of the help text compile in several."""
    process = llmbench("kernels", "inspect", "rope", "--jobs", "1", "--format", "json")
    rows = json.loads(process.stdout)["configurations"]
    assert len(rows) > sum(row["shipped"] for row in rows) == 4, "one function for four shapes"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("check", "gluu"), 2, "did you mean `glu`?"),
        (("inspect", "glu", "--arch", "sm_91"), 2, "choose from sm_80, sm_90, sm_100"),
        (("inspect", "glu", "--dtype", "fp8"), 2, "choose from bf16, fp16, fp32"),
        (("check", "glu", "--device", "tpu"), 2, "choose from auto, cuda, cpu"),
        (("check", "glu", "--seeds", "0"), 2, "--seeds"),
        (("check", "glu", "--fuzz", "0"), 2, "--fuzz"),
    ],
)
def test_wrong_arguments_are_explained(arguments: tuple[str, ...], code: int, said: str) -> None:
    process = llmbench("kernels", *arguments)
    assert process.returncode == code
    assert said in process.stderr
    assert "Traceback" not in process.stderr
    assert not process.stdout


def test_the_interpreter_needs_a_numpy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "numpy" else find(name))
    assert run(["kernels", "check", "glu", "--device", "cpu"]) == 3
    assert "needs numpy, which is not installed" in capsys.readouterr().err


def test_an_old_interpreter_needs_an_old_numpy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versions = {"triton": "3.6.0", "numpy": "2.4.1"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    assert run(["kernels", "check", "glu", "--device", "cpu"]) == 3
    assert "pip install 'numpy<2.4'" in capsys.readouterr().err


def test_a_terminal_shows_the_progress_and_the_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []

    class Status:
        def __init__(self, text: str) -> None:
            texts.append(text)

        def __enter__(self) -> Status:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, text: str) -> None:
            texts.append(text)

    monkeypatch.setattr("rich.console.Console.status", lambda self, text: Status(text))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    clock = iter((0.0, 10.0, 20.0, 30.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert list(with_progress(["a1", "a2", "b1"], "compiling", lambda item: item[0], 4)) == ["a1", "a2", "b1"]
    assert texts == [
        "compiling: 0 of 4 shapes",
        "compiling: 1 of 4 shapes in 10 s, about 30 s left",
        "compiling: 1 of 4 shapes in 20 s, about 60 s left",
        "compiling: 2 of 4 shapes in 30 s, about 30 s left",
    ]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert list(with_progress([1], "checking")) == [1]
    assert len(texts) == 4
