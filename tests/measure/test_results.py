"""Result files: lines are complete or damaged, files are resumed but never mixed, older schemas are read."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from llmbench.errors import LLMBenchError
from llmbench.kernels.proof.accuracy import Verdict
from llmbench.measure.energy import Energy
from llmbench.measure.measurement import Measurement, MemoryPeak
from llmbench.measure.regressions import diff
from llmbench.measure.results import ENDED_SESSION, SCHEMA, Check, Line, Row, read
from llmbench.measure.store import Store
from llmbench.measure.telemetry import Conditions
from tests.measure.rows import ENVIRONMENT, header, references, row, timed

FULL = row(
    memory=MemoryPeak(added_bytes=5, resident_bytes=6, reserved_bytes=7, by="allocator"),
    energy=Energy(joules=3.0, calls=2, seconds=1.5),
    need_bytes=10,
    work_flops=10**12,
    work_bytes=10**9,
    predicted_s=0.009,
    checks=(Check(tensor="out", error=1e-3, plain_error=1e-3, budget=2e-3, passed=True),),
    kernels=("flash_fwd_kernel",),
    extra={"tokens_per_s": 1.5e5},
)


def test_written_rows_are_read_back(tmp_path: Path) -> None:
    rows = [FULL, row("standard", status="OOM", seq=1024, need_bytes=2**40), row("flex", status="n/a")]
    with Store(tmp_path / "r.jsonl", header(reference_measurements=references())) as store:
        store.write(rows[:1])
        store.write(rows[1:])
        store.write([])
    content = read(tmp_path / "r.jsonl")
    assert content.rows == rows
    headers = [(head.environment, head.reference_measurements) for head in content.headers]
    assert headers == [(ENVIRONMENT, references())]
    assert not content.damaged


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="the system has no /proc")
def test_a_file_of_proc_is_no_result_file(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").symlink_to("/proc/self/comm")
    with pytest.raises(LLMBenchError, match="it is a file of /proc"):
        Store(tmp_path / "x.jsonl", header(), resume=True)


def test_every_line_is_plain_json_with_documented_keys(tmp_path: Path) -> None:
    """A reader of the file needs only JSON and the documentation."""
    with Store(tmp_path / "r.jsonl", header()) as store:
        store.write([FULL])
    first, second = (json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines())
    assert (first["line"], first["schema"], second["line"]) == ("header", SCHEMA, "row")
    assert second["measurement"]["samples_s"] == [0.01, 0.011, 0.0105]
    assert second["case"] == {"seq": 512, "causal": True}
    page = (Path(__file__).parents[2] / "docs" / "concepts" / "measuring.md").read_text(encoding="utf-8")
    conditions = Conditions(readings=1)
    parts = (first, second, first["environment"], second["measurement"], second["memory"], second["checks"][0])
    for part in (*parts, second["energy"], msgspec.to_builtins(conditions), msgspec.to_builtins(references())):
        for name in part:
            assert f"`{name}`" in page, f"{name} is not documented"


def test_rows_are_on_disk_when_the_process_is_killed(tmp_path: Path) -> None:
    code = f"""
import os, signal
from llmbench.measure.store import Store
from tests.measure.rows import header, row
store = Store({str(tmp_path / "r.jsonl")!r}, header())
store.write([row()])
os.kill(os.getpid(), signal.SIGKILL)
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert process.returncode == -signal.SIGKILL
    assert read(tmp_path / "r.jsonl").rows == [row()]


def test_a_truncated_line_is_reported_and_its_row_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Store(path, header()) as store:
        store.write([row(), row("standard")])
    os.truncate(path, path.stat().st_size - 40)
    content = read(path)
    assert [row.implementation for row in content.rows] == ["flash"]
    (damage,) = content.damaged
    assert str(damage).startswith(f"{path}:3: ")
    with Store(path, header(), resume=True) as store:
        assert store.done == {row().key}
        store.write([row("standard")])
    content = read(path)
    assert [row.implementation for row in content.rows] == ["flash", "standard"]
    assert [damage.line for damage in content.damaged] == [3]
    assert len(content.headers) == 2


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"null",
        b"[]",
        b'{"line":"row"}',
        b'{"line":"tow"}',
        b"\xff\xfe",
        msgspec.json.encode(FULL).replace(b"samples_s", b"samples"),
        msgspec.json.encode(FULL).replace(b"[0.01,0.011,0.0105]", b"[]"),
        msgspec.json.encode(FULL).replace(b"0.011", b"-0.011"),
        msgspec.json.encode(FULL).replace(b'"ok"', b'"OOM"'),
        msgspec.json.encode(FULL).replace(b'"line":"row"', b'"line":"row","more":1'),
    ],
)
def test_a_damaged_line_is_reported_and_the_others_are_read(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    good = [msgspec.json.encode(line) for line in (header(), FULL)]
    path.write_bytes(b"\n".join([good[0], line, b"", good[1], b""]))
    content = read(path)
    assert content.rows == [FULL]
    assert [damage.line for damage in content.damaged] == [2]
    assert content.damaged[0].problem


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with pytest.raises(LLMBenchError, match=r"cannot read .*: No such file"):
        read(path)
    with pytest.raises(LLMBenchError, match=r"cannot read .*: it is a folder"):
        read(tmp_path)
    path.write_text("")
    with pytest.raises(LLMBenchError, match="is empty"):
        read(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(LLMBenchError, match=r"no results: .*:1: "):
        read(path)
    path.write_bytes(msgspec.json.encode(header()).replace(SCHEMA.encode(), b"llmbench.results/99"))
    with pytest.raises(LLMBenchError, match=f"has the schema llmbench.results/99; this llmbench reads {SCHEMA}"):
        read(path)


def test_a_file_is_not_overwritten_or_mixed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    Store(path, header()).close()
    with pytest.raises(LLMBenchError, match="exists already") as refused:
        Store(path, header())
    assert "--resume" in (refused.value.hint or "")
    with pytest.raises(LLMBenchError, match="with other inputs: bench attention"):
        Store(path, header(inputs={"seq": [512]}), resume=True)
    with pytest.raises(LLMBenchError, match=r"cannot write .*: No such file"):
        Store(tmp_path / "nowhere" / "r.jsonl", header())
    with pytest.raises(LLMBenchError, match="is a folder"):
        Store(tmp_path, header())
    Store(path, header(inputs={"seq": (512, 1024)}), resume=True).close()  # a tuple is a list in a file


@pytest.mark.parametrize(
    ("field", "was", "now"),
    [
        ("device", "cpu", "NVIDIA H200"),
        ("torch", "2.13.0", "2.14.0"),
        ("triton", None, "3.9.0"),
        ("driver", "570.1", "580.2"),
        ("threads", 2, 1),
        ("commit", "abc", "def+"),
        ("commit", None, "abc"),
    ],
)
def test_a_file_of_another_environment_is_not_resumed(field: str, was: Any, now: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    before, after = (msgspec.structs.replace(ENVIRONMENT, **{field: value}) for value in (was, now))
    Store(path, header(environment=before)).close()
    with pytest.raises(LLMBenchError, match="another machine or by other code") as refused:
        Store(path, header(environment=after), resume=True)
    assert f"{field}: {'unknown' if was is None else was} → {now}" in str(refused.value)
    assert "--output" in (refused.value.hint or "")
    assert len(read(path).headers) == 1


def test_a_file_of_a_gpu_is_resumed_beside_another_cpu(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    before = msgspec.structs.replace(ENVIRONMENT, device="NVIDIA H200", threads=16, cpu="AMD EPYC")
    after = msgspec.structs.replace(before, threads=8, cpu="Intel Xeon")
    Store(path, header(environment=before)).close()
    with Store(path, header(environment=after), resume=True) as store:
        assert store.notes == [
            "earlier rows are from a machine with another CPU: cpu: AMD EPYC → Intel Xeon; threads: 16 → 8"
        ]
    with pytest.raises(LLMBenchError, match=": driver: "):
        Store(path, header(environment=msgspec.structs.replace(after, driver="580.2")), resume=True)


@pytest.mark.parametrize(("was", "now", "notes"), [("abc", "abc", 0), ("abc", "abc+", 1), ("abc+", "abc+", 1)])
def test_files_that_differ_from_the_commit_are_noted(was: str, now: str, notes: int, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    before, after = (msgspec.structs.replace(ENVIRONMENT, commit=commit) for commit in (was, now))
    Store(path, header(environment=before)).close()
    with Store(path, header(environment=after), resume=True) as store:
        assert store.notes == ["the code differs from commit abc: earlier rows may come from other code"] * notes


OLD_FILE = Path(__file__).parent / "data" / "results-1.jsonl"
"""The first lines of `llmbench bench norms --device cpu` at commit 6c4018e, in the schema llmbench.results/1."""


def test_a_file_of_the_first_schema_is_read() -> None:
    """Every value has its present name and its old value."""
    old_header, *old_rows = (json.loads(line) for line in OLD_FILE.read_text().splitlines())
    content = read(OLD_FILE)
    assert not content.damaged
    (head,) = content.headers
    assert head.schema == SCHEMA
    assert head.inputs == old_header["inputs"]
    assert msgspec.to_builtins(head.environment) == old_header["environment"]
    assert head.reference_measurements is not None
    for name, old in old_header["anchors"].items():
        reference = getattr(head.reference_measurements, name)
        assert (reference.description, reference.work) == (old["what"], old["work"])
        assert_same_measurement(reference.measurement, old["measurement"])
    for new, old in zip(content.rows, old_rows, strict=True):
        assert (new.case, new.implementation, new.status) == (old["case"], old["implementation"], old["status"])
        assert (new.extra, new.predicted_s, new.need_bytes) == (old["figures"], old["predicted_s"], old["need_bytes"])
        if old["memory"] is not None:
            assert new.memory is not None
            assert (new.memory.added_bytes, new.memory.resident_bytes) == (
                old["memory"]["added_bytes"],
                old["memory"]["held_bytes"],
            )
        if old["measurement"] is not None:
            assert_same_measurement(new.measurement, old["measurement"])
    assert [new.status for new in content.rows] == ["n/a", "n/a", "ok", "ok"]


def assert_same_measurement(measurement: Measurement | None, old: dict[str, Any]) -> None:
    """Compare a measurement with one of the first schema."""
    assert measurement is not None
    assert list(measurement.samples_s) == old["samples_s"]
    assert (measurement.run_queue_share, measurement.barrier_s) == (old["waited"], old["meeting_s"])
    assert None not in (measurement.run_queue_share, measurement.barrier_s)


def test_an_old_file_is_compared_with_a_new_one(tmp_path: Path) -> None:
    """The same measurements in both schemas: no row and no reference measurement changed."""
    old = read(OLD_FILE)
    with Store(tmp_path / "new.jsonl", old.headers[0]) as store:
        store.write(old.rows)
    new = read(tmp_path / "new.jsonl")
    assert b"llmbench.results/2" in (tmp_path / "new.jsonl").read_bytes()
    for before, after in ((old, new), (new, old)):
        difference = diff(before, after)
        assert [change.ratio for change in difference.changes] == [None, None, 1.0, 1.0]
        assert difference.regressions == difference.notes == []


def test_the_old_name_of_a_case_is_the_new_one(tmp_path: Path) -> None:
    """`bench moe` named one of its sweeps "by experts a token". `diff` pairs its rows with the rows of today."""
    lines = OLD_FILE.read_text().splitlines()
    old_row = json.loads(lines[-1])
    paths = []
    for name in ("by experts a token", "by experts per token"):
        old_row["case"] = {"what": name, "experts": 64, "top_k": 2}
        paths.append(tmp_path / f"{name}.jsonl")
        paths[-1].write_text(f"{lines[0]}\n{json.dumps(old_row)}\n")
    before, after = map(read, paths)
    assert before.rows == after.rows
    assert [change.ratio for change in diff(before, after).changes] == [1.0]


def test_each_row_belongs_to_its_session(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Store(path, header(reference_measurements=references())) as store:
        store.write([row("a"), row("b")])
    with Store(path, header(reference_measurements=references(matmul_s=2e-3)), resume=True) as store:
        store.write([row("b"), row("c")])
    headers = read(path).headers_by_key()
    medians = {
        key[2]: head.reference_measurements.matmul.measurement.median_s
        for key, head in headers.items()
        if head and head.reference_measurements
    }
    assert medians == {"a": 1e-3, "b": 2e-3, "c": 2e-3}
    path.write_bytes(path.read_bytes().split(b"\n", 1)[1])  # without the first header
    assert read(path).headers_by_key()[row("a").key] is None
    assert [row.implementation for row in read(path).rows] == ["a", "b", "b", "c"]


def test_failed_rows_are_measured_again_unless_they_ended_a_session(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Store(path, header()) as store:
        assert store.done == set()
        store.write([row("a"), row("b", status="OOM"), row("c", status="FAILED"), row("d", status="INCORRECT")])
        store.write([row("a", 5.0)])
        store.write([row("e", status="FAILED", extra={ENDED_SESSION: True})])
    with Store(path, header(), resume=True) as store:
        assert {key[2] for key in store.done} == {"a", "b", "d", "e"}
        assert {key[2] for key in store.ended_session} == {"e"}
    assert read(path).by_key()[row("a").key].seconds == 5.0  # measured again


def test_a_row_has_a_time_or_a_reason() -> None:
    case = {"experiment": "x", "case": {}, "implementation": "y"}
    for wrong in ({"status": "ok"}, {"status": "OOM"}, {"status": "OOM", "reason": "r", "measurement": timed(1.0)}):
        with pytest.raises(ValueError, match="a row"):
            Row(**case, **wrong)


def test_rates_of_a_row() -> None:
    assert (FULL.seconds, FULL.flops_per_s, FULL.bytes_per_s) == (0.0105, 1e12 / 0.0105, 1e9 / 0.0105)
    untimed = row("x", status="OOM", work_flops=5)
    assert (untimed.seconds, untimed.flops_per_s, untimed.bytes_per_s) == (None, None, None)
    assert FULL.energy is not None
    assert FULL.energy.joules_per_call == 1.5


def test_a_check_with_nan_or_infinity_survives_the_file() -> None:
    check = Check.from_verdict(Verdict("out", math.nan, 1e-3, 2e-3, False))
    assert check.fault() == "out: error not a number, budget 2.0e-03"
    incorrect = row(
        "x", status="INCORRECT", checks=(check, Check.from_verdict(Verdict("dq", math.inf, 0.0, 0.0, False)))
    )
    assert msgspec.json.decode(msgspec.json.encode(incorrect), type=Line) == incorrect


def test_a_measurement_refuses_values_that_are_no_times() -> None:
    for wrong in ((), (math.nan,), (-1.0,), (math.inf,)):
        with pytest.raises(ValueError, match="sample"):
            Measurement(samples_s=wrong, clock="cpu")
    with pytest.raises(ValueError, match="share"):
        timed(1.0, run_queue_share=1.5)
    for wrong_s in (0.0, -1e-6, math.nan, math.inf):
        with pytest.raises(ValueError, match="barrier_s"):
            timed(1.0, barrier_s=wrong_s)


def removed(path: Path) -> None:
    path.unlink()


def folder_removed(path: Path) -> None:
    shutil.rmtree(path.parent)


def replaced(path: Path) -> None:
    path.rename(path.with_suffix(".old"))
    path.write_text("another file")


def truncated(path: Path) -> None:
    os.truncate(path, 10)


def overwritten(path: Path) -> None:
    """The inode stays, and the file becomes larger."""
    path.write_bytes(b"x" * (3 * path.stat().st_size))


def overwritten_by_as_many_bytes(path: Path) -> None:
    path.write_bytes(b"x" * path.stat().st_size)


def appended(path: Path) -> None:
    """The next row would end in the incomplete line of the other program."""
    with path.open("a") as file:
        file.write("other")


@pytest.mark.parametrize(
    "damage", [removed, folder_removed, replaced, truncated, overwritten, overwritten_by_as_many_bytes, appended]
)
@pytest.mark.parametrize("resumed", [False, True], ids=["new", "resumed"])
@pytest.mark.parametrize("at_the_end", [False, True], ids=["before a row", "after the last row"])
def test_no_row_is_lost_with_the_file(
    damage: Callable[[Path], None], resumed: bool, at_the_end: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, temporary = tmp_path / "results", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    path, rows = folder / "r.jsonl", [row()]
    if resumed:
        rows.insert(0, row("earlier"))
        with Store(path, header()) as store:
            store.write(rows[:1])
    with Store(path, header(), resume=resumed) as store:
        store.write([row()])
        damage(path)
        if not at_the_end:
            store.write([row("standard")])
            rows.append(row("standard"))
    assert store.path != path
    assert store.path.parent == (temporary if damage is folder_removed else folder)
    content = read(store.path)
    assert content.rows == rows
    assert len(content.headers) == 1 + resumed
    (note,) = store.notes
    assert str(path) in note
    assert str(store.path) in note


def test_rows_that_do_not_fit_on_the_disk_go_to_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The write fails in the folder of the file, as on a full disk, and works in the folder for temporary files."""
    folder, temporary = tmp_path / "results", tmp_path / "temporary"
    folder.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    whole_write, path = os.write, folder / "r.jsonl"

    def write(file: int, text: bytes) -> int:
        if "results" in os.readlink(f"/proc/self/fd/{file}") and full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole_write(file, text)

    full = False
    with Store(path, header()) as store:
        store.write([row()])
        monkeypatch.setattr(os, "write", write)
        full = True
        store.write([row("standard")])
        store.write([row("flex", status="n/a")])
    assert store.path.parent == temporary
    assert [row.implementation for row in read(store.path).rows] == ["flash", "standard", "flex"]
    assert [row.implementation for row in read(path).rows] == ["flash"]


def test_rows_that_fit_nowhere_are_written_when_the_disk_has_space_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    whole_write, path = os.write, tmp_path / "r.jsonl"

    def write(file: int, text: bytes) -> int:
        if full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole_write(file, text)

    full = False
    monkeypatch.setattr(os, "write", write)
    with Store(path, header()) as store:
        full = True
        with pytest.raises(LLMBenchError, match="no other file can be written"):
            store.write([row()])
        assert store.measured == [row()]
        full = False
    assert read(store.path).rows == [row()]


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Store(path, header()), pytest.raises(LLMBenchError, match="another run writes"):
        Store(path, header(), resume=True)
    Store(path, header(), resume=True).close()


@pytest.mark.parametrize("damage", ["missing", "truncated", "row and header joined"])
def test_rows_without_a_whole_header_are_not_continued(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Store(path, header()) as store:
        store.write([row()])
    first, second = path.read_bytes().splitlines(keepends=True)
    if damage == "missing":
        path.write_bytes(second)
    elif damage == "truncated":
        path.write_bytes(first[:-40] + b"\n" + second)
    else:  # two files were joined, and the first one ended in an incomplete row
        path.write_bytes(first + second[:-40] + first + second)
    before = path.read_bytes()
    with pytest.raises(LLMBenchError, match="without a whole header") as refused:
        Store(path, header(), resume=True)
    assert "--output" in (refused.value.hint or "")
    assert path.read_bytes() == before
    assert read(path).rows == [row()]


def test_a_damaged_row_leaves_its_session_whole(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    with Store(path, header()) as store:
        store.write([row(), row("standard"), row("flex")])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2][:-40] + b"\n", lines[3]]))
    with Store(path, header(), resume=True) as store:
        assert store.done == {row().key, row("flex").key}
