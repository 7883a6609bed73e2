"""An answer replaces only an earlier answer of the same kind, and a failed write leaves the file as it was."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmbench.cli import run
from llmbench.spec.catalog import load_bundled
from llmbench.spec.files import write_spec

from .inputs import quickly

Capture = pytest.CaptureFixture[str]
PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "published"
CONFIG = b'{"model_type": "llama", "num_hidden_layers": 2}'
FORMATS = ("table", "json", "csv", "markdown")

OTHERS = {
    "model.safetensors": (8).to_bytes(8, "little") + b"{}      ",
    "x.gguf": b"GGUF\x03",
    "config.json": CONFIG,
    "x.toml": write_spec(load_bundled("gpt2")).encode(),
    "metrics.jsonl": b'{"step": 1, "loss": 2.5}\n',
    "state.json": b'{"schema": "llmbench.train/1"}',
    "results.jsonl": b'{"line":"header"}\n',
    "notes.md": b"# Notes\n",
    "x.csv": b"model,price\n",
    "x.txt": b"\ntext\n",
    "other.json": b'{\n  "schema": "llmbench.ablate/1"\n}',
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_of_another_program_or_command_is_not_replaced(name: str, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / name
    path.write_bytes(OTHERS[name])
    link = tmp_path / "link"
    link.symlink_to(path)
    commands = [["params", "gpt2", "--format", format] for format in FORMATS]
    for command in [*commands, ["specs", "import", str(path)], ["specs", "show", "gpt2"]]:
        for output in (path, link):
            assert run([*command, "-o", str(output)]) == 2
    assert path.read_bytes() == OTHERS[name]
    assert "would be lost" in capsys.readouterr().err


def test_no_command_replaces_its_input(tmp_path: Path, capsys: Capture) -> None:
    config, spec, table = tmp_path / "config.json", tmp_path / "x.toml", tmp_path / "kv.csv"
    config.write_bytes(CONFIG)
    spec.write_bytes(OTHERS["x.toml"])
    table.write_bytes((PUBLISHED / "kv_formats.csv").read_bytes())
    for words, path in (("params", config), ("params", spec), ("validate kv", table), ("specs check", spec)):
        before = path.read_bytes()
        assert run([*words.split(), str(path), "-o", str(path)]) == 2
        assert path.read_bytes() == before
        assert "would be lost" in capsys.readouterr().err


@pytest.mark.parametrize("format", FORMATS)
def test_an_answer_replaces_an_earlier_answer(format: str, tmp_path: Path) -> None:
    path, link = tmp_path / "x", tmp_path / "link"
    link.symlink_to(path.name)
    assert run(["params", "gpt2", "--format", format, "-o", str(link)]) == 0  # creates the file of the link
    path.chmod(0o640)
    assert run(["params", "gpt2", "--format", format, "-o", str(link), "--explain", "--notes"]) == 0
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.write_bytes(b"")
    assert run(["kvcache", "gpt2", "--format", format, "-o", str(path)]) == 0
    assert sorted(os.listdir(tmp_path)) == ["link", "x"]


def test_a_spec_is_never_replaced(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "x.toml"
    assert run(["specs", "show", "gpt2", "-o", str(path)]) == 0
    capsys.readouterr()
    assert run(["specs", "show", "gpt2", "-o", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"error: --output {path} exists, and its content would be lost\n\n"
        "hint: give the name of a new file, or remove this file first\n"
    )


@pytest.fixture
def full_disk() -> Iterator[None]:
    """A limit of the size of files."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_failed_write_leaves_the_earlier_answer(
    tmp_path: Path, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.json"
    assert run(["params", "gpt2", "-o", str(path)]) == 0
    before = path.read_bytes()
    request.getfixturevalue("full_disk")
    assert run(["params", "llama2-7b", "-o", str(path)]) == 2
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_pipe_without_a_reader_is_not_waited_for(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with quickly():
        assert run(["params", "gpt2", "-o", str(path)]) == 2
    assert f"cannot write {path}: no program reads this pipe" in capsys.readouterr().err
    waiting = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a reader, which leaves the content to the other one
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(path.read_bytes()))
    reader.start()
    assert run(["kvcache", "--all", "--format", "json", "-o", str(path)]) == 0  # more than a pipe holds
    reader.join(timeout=10)
    os.close(waiting)
    assert len(read[0]) > 2**16
    assert json.loads(read[0])["schema"].startswith("llmbench.kvcache/")


@pytest.mark.parametrize("device", ["/dev/null", "/dev/stdout", "/dev/fd/1"])
def test_an_answer_can_go_to_a_device(device: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    command = f"{sys.executable} -m llmbench params gpt2 -f csv -o {device} >> {log}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    assert log.read_text().startswith("before\nmodel," if device != "/dev/null" else "before\n")
