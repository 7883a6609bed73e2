"""Files that are no regular files, or that are too large, are refused at once by every reader."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llmbench.cli import run
from llmbench.errors import LLMBenchError
from llmbench.measure.results import read
from llmbench.model.weights import Checkpoint
from llmbench.spec.catalog import find_model
from llmbench.spec.files import read_spec
from llmbench.spec.huggingface import load_config
from llmbench.spec.reading import MOST_BYTES
from llmbench.spec.weights.tensors import read_tensors

from .inputs import quickly


def pipe(path: Path) -> None:
    os.mkfifo(path)


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def larger_than_any_config(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**27)


def folder(path: Path) -> None:
    path.mkdir()


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "spec": ("x.toml", read_spec),
    "config": ("config.json", load_config),
    "config of a folder": ("config.json", lambda path: load_config(path.parent)),
    "model": ("config.json", lambda path: find_model(str(path))),
    "index of weights": ("model.safetensors.index.json", lambda path: Checkpoint(path.parent)),
    "weights": ("model.safetensors", lambda path: Checkpoint(path.parent)),
    "headers of weights": ("model.safetensors", lambda path: read_tensors(str(path.parent))),
    "GGUF": ("x.gguf", lambda path: find_model(str(path))),
    "results": ("x.jsonl", read),
}


@pytest.mark.parametrize("kind", [pipe, link_to_a_device, link_to_itself, larger_than_any_config, folder])
@pytest.mark.parametrize("reader", READERS)
def test_only_regular_files_of_a_plausible_size_are_read(
    kind: Callable[[Path], None], reader: str, tmp_path: Path
) -> None:
    name, call = READERS[reader]
    kind(tmp_path / name)
    with quickly(), pytest.raises(LLMBenchError) as refused:
        call(tmp_path / name)
    assert len(str(refused.value)) < 1000


COMMANDS = [["params"], ["memory"], ["diff", "/dev/zero"], ["specs", "show"], ["specs", "check"], ["validate", "kv"]]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("path", ["/dev/zero", "/proc/kmsg", "/proc/self/mem", "/dev/stdin", "/proc/kcore"])
def test_devices_are_refused_on_the_command_line(
    arguments: list[str], path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with quickly():
        assert run([*arguments, path]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("command", ["params gpt2", "kvcache", "specs list", "specs show gpt2", "env"])
def test_no_command_writes_over_results(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"line":"header"}\n')
    assert run([*command.split(), "--output", str(path)]) == 2
    assert "contains results, which would be lost" in capsys.readouterr().err
    assert path.read_text() == '{"line":"header"}\n'


@pytest.mark.parametrize(
    "content",
    [
        b'\n{"line":"header"}\n',
        b'\xef\xbb\xbf{"line":"header"}\n',
        b'  {"line": "header"}\n',
        b'x{"li\n{"line":"row"}\n',
        b'{"schema":"x","line" : "header"}\n',
        b" " * 2**20 + b'{"line":"row"}\n',
    ],
    ids=["empty line", "byte order mark", "spaces", "damaged first line", "other order", "later"],
)
def test_a_damaged_result_file_is_not_overwritten_either(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    assert run(["specs", "show", "gpt2", "--output", str(path)]) == 2
    assert "would be lost" in capsys.readouterr().err
    assert path.read_bytes() == content


def test_a_shard_that_is_truncated_while_it_is_read(tmp_path: Path) -> None:
    """The system would end the process with SIGBUS."""
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100_000)}, path)
    checkpoint = Checkpoint(tmp_path)
    os.truncate(path, 5000)
    with pytest.raises(LLMBenchError, match="truncated after it was opened"):
        checkpoint.tensor("a")


def test_a_header_of_a_shard_has_a_largest_size(tmp_path: Path) -> None:
    size = MOST_BYTES + 1
    (tmp_path / "model.safetensors").write_bytes(size.to_bytes(8, "little"))
    os.truncate(tmp_path / "model.safetensors", 2 * size)
    with quickly(), pytest.raises(LLMBenchError, match="its header has more than"):
        Checkpoint(tmp_path)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "missing")


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "hf_quant_config.json"])
@pytest.mark.parametrize("kind", [pipe, link_to_a_device, link_to_itself, dangling, folder])
def test_a_file_beside_a_config_is_not_ignored_because_it_cannot_be_read(
    name: str, kind: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    kind(tmp_path / name)
    with quickly():
        assert run(["params", str(tmp_path)]) == 2
    assert f"cannot read {tmp_path / name}: " in capsys.readouterr().err


@pytest.mark.parametrize("kind", [pipe, link_to_a_device, link_to_itself, folder])
def test_a_config_of_a_folder_that_cannot_be_read(
    kind: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind(tmp_path / "config.json")
    with quickly():
        assert run(["params", str(tmp_path)]) == 2
    assert f"cannot read {tmp_path / 'config.json'}: " in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a", "a\x1b", "a\n"])
def test_an_index_names_files_of_its_folder_only(name: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(LLMBenchError, match="is not the name of a file in the folder"):
        read_tensors(str(tmp_path))
