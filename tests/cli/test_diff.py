"""`llmbench diff`: two real runs, planted slow-downs, output and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmbench.cli import run
from llmbench.measure.measurement import MemoryPeak
from llmbench.measure.regressions import NOISE_FLOOR
from llmbench.measure.results import Row, read
from llmbench.measure.store import Store
from tests.measure.rows import header, row

Capture = pytest.CaptureFixture[str]

TWO_RUNS = """
from functools import partial
from itertools import count
from types import SimpleNamespace
from llmbench.cli import run
from llmbench.measure import clock, reference
small = reference.Sizes(64, 2**16, 10)
reference.measure_references = partial(reference.measure_references, sizes=small)
readings = count()
clock.time = SimpleNamespace(perf_counter=lambda: next(readings) / 1024)
clock.run_queue_delay_s = lambda: None
clock.barrier_timer = lambda threads: None
for name in ("first", "second"):
    assert run(["bench", "norms", "--device", "cpu", "-o", name + ".jsonl"]) == 0
"""
"""Two runs in simulated time, which advances with each reading."""


def file_of(rows: list[Row], path: Path) -> Path:
    """Write a result file with these rows."""
    path.unlink(missing_ok=True)
    with Store(path, header()) as store:
        store.write(rows)
    return path


def slower(row: Row, times: float) -> Row:
    """Return the row slowed by a factor, if it has a time."""
    if row.measurement is None:
        return row
    samples = tuple(sample * times for sample in row.measurement.samples_s)
    return msgspec.structs.replace(row, measurement=msgspec.structs.replace(row.measurement, samples_s=samples))


def compared(capsys: Capture, before: Path, after: Path, code: int) -> dict[str, Any]:
    """Run `diff` with that exit code and return its JSON."""
    assert run(["diff", str(before), str(after), "--format", "json"]) == code
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert answer["schema"] == "llmbench.diff/2"
    return answer


def test_two_runs_of_one_build_show_no_regression(tmp_path: Path, capsys: Capture) -> None:
    """Real runs in simulated time, because a machine that runs tests disturbs real times.
    `tests/measure/test_regressions.py` simulates such disturbances. A candidate that takes twice as long is found."""
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", TWO_RUNS], cwd=tmp_path, env=clean, check=True, capture_output=True)
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    for before, after in ((first, second), (second, first)):
        document = compared(capsys, before, after, 0)
        assert {change["verdict"] for change in document["changes"]} - {"untimed"} == {"same"}
    rows = [slower(row, 2) if row.implementation == "RMSNorm" else row for row in read(second).rows]
    changes = compared(capsys, first, file_of(rows, tmp_path / "slow.jsonl"), 1)["changes"]
    planted = [change["implementation"] for change in changes if change["verdict"] == "slower"]
    assert planted == ["RMSNorm"] * 4
    assert {change["verdict"] for change in changes} - {"untimed"} == {"same", "slower"}


def quiet(name: str, added_bytes: int = 2**24, **more: Any) -> Row:
    """A row with ten equal samples, whose noise is `NOISE_FLOOR`."""
    return row(name, *[0.01] * 10, memory=MemoryPeak(added_bytes=added_bytes, by="tensors"), **more)


def test_a_planted_slow_down_is_found(tmp_path: Path, capsys: Capture) -> None:
    rows = [quiet(name, seq=seq) for seq in (64, 128) for name in ("flash", "sdpa", "standard")]
    before = file_of(rows, tmp_path / "before.jsonl")
    same = file_of([slower(row, 1 + NOISE_FLOOR["cpu"] / 2) for row in rows], tmp_path / "same.jsonl")
    after = file_of([slower(rows[0], 1.3), *rows[1:]], tmp_path / "after.jsonl")
    assert compared(capsys, before, same, 0)["regressions"] == 0
    document = compared(capsys, before, after, 1)
    (changed,) = (change for change in document["changes"] if change["verdict"] == "slower")
    assert (changed["implementation"], changed["ratio"]) == ("flash", pytest.approx(1.3))
    assert changed["noise"] == pytest.approx(0.105, abs=0.001)  # exp(0.1) - 1
    assert run(["diff", str(before), str(after)]) == 1
    text = capsys.readouterr().out
    assert "1.30×" in text
    assert text.startswith("1 of 6 rows became worse. flash in attention (seq 64, causal True) takes 1.30× as long")
    assert "5 rows did not change by more than the noise." in text
    assert "attention · seq 64 · causal True" in text
    after.write_bytes(after.read_bytes()[:-9])
    assert run(["diff", str(before), str(after)]) == 1
    assert "after.jsonl:7: " in capsys.readouterr().out


def test_memory_that_grew_and_rows_that_are_gone(tmp_path: Path, capsys: Capture) -> None:
    before = file_of([quiet("a"), quiet("b")], tmp_path / "before.jsonl")
    larger = file_of([quiet("a", 2**25), quiet("b")], tmp_path / "larger.jsonl")
    assert compared(capsys, before, larger, 1)["changes"][0]["memory_grew"]
    assert run(["diff", str(before), str(larger)]) == 1
    text = capsys.readouterr().out
    assert "same, more memory" in text
    assert "2.00×" in text
    fewer = file_of([quiet("a", 2**23)], tmp_path / "fewer.jsonl")
    assert run(["diff", str(before), str(fewer)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("None of 2 rows became worse. 1 row did not change by more than the noise. 1 row is only in")
    assert "only in the first file: b in attention (seq 512, causal True)" in text


def test_noisy_samples_are_unclear(tmp_path: Path, capsys: Capture) -> None:
    before = file_of([quiet("a")], tmp_path / "before.jsonl")
    noisy = file_of([row("a", *(0.01 * (0.6 + 0.2 * (n % 5)) for n in range(10)))], tmp_path / "noisy.jsonl")
    assert run(["diff", str(before), str(noisy)]) == 0
    text = capsys.readouterr().out
    assert "The files do not show whether a row became worse. 1 row is unclear, because its noise is too large." in text
    assert "unclear: the noise could hide a change by 1.3×" in text


def test_an_answer_in_json_is_no_result_file(tmp_path: Path, capsys: Capture) -> None:
    answer = tmp_path / "p1.json"
    assert run(["params", "gpt2", "--format", "json", "-o", str(answer)]) == 0
    assert run(["diff", str(answer), str(answer)]) == 2
    err = capsys.readouterr().err
    assert "p1.json is an answer of `llmbench params`, not a result file" in err
    assert "`llmbench bench EXPERIMENT --output FILE` writes result files" in err


def test_files_without_a_common_row_are_refused(tmp_path: Path, capsys: Capture) -> None:
    before, after = (file_of([quiet(name)], tmp_path / f"{name}.jsonl") for name in ("a", "b"))
    assert run(["diff", str(before), str(after)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "no row in common" in err
    assert "hint: " in err


@pytest.mark.parametrize(
    "command", ["diff {file} {file}", "profile norm --device cpu --seq 8", "bench norms --device cpu"]
)
def test_result_files_are_not_overwritten(command: str, tmp_path: Path, capsys: Capture) -> None:
    path = file_of([quiet("a")], tmp_path / "r.jsonl")
    before = path.read_bytes()
    assert run([*command.format(file=path).split(), "--output", str(path)]) == 2
    assert f"{path} contains results" in capsys.readouterr().err
    assert path.read_bytes() == before
