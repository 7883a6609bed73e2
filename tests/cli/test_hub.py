"""Models of the Hugging Face hub. A local server answers as the hub does. Each refusal is a sentence with a hint."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple
from zlib import crc32

import pytest
from huggingface_hub import constants

from llmbench.cli import run
from llmbench.errors import install_hint
from llmbench.spec.catalog import load_bundled
from llmbench.spec.huggingface import hub as reader
from llmbench.spec.huggingface import hub_headers
from llmbench.spec.huggingface.hub_requests import TIMEOUT_S

from ..oracles.huggingface_export import to_config

Capture = pytest.CaptureFixture[str]
CONFIG = json.dumps(to_config(load_bundled("gpt2"))).encode()


class Repository(NamedTuple):
    """The files of a repository: first bytes and size of each file. The bytes after them are zeros."""

    files: dict[str, tuple[bytes, int]]
    refused: Mapping[str, int] = MappingProxyType({})
    """The status of the answer for files that the hub refuses."""
    ranges: bool = True
    """Whether the hub answers requests for a part of a file."""
    moved_to: str = ""
    """The server to which requests for safetensors files are redirected."""


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does. The name of the repository chooses the answer."""

    repositories: ClassVar[dict[str, Repository]] = {}
    asked: ClassVar[list[tuple[str, str, int]]] = []
    sent: ClassVar[list[tuple[Repository, str]]] = []
    """The name, the range and the number of sent bytes of each request for a file of `repositories`."""
    tokens: ClassVar[list[str | None]] = []

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name, file = self.path.split("/")[2], self.path.rpartition("/")[2]
        if name in self.repositories:
            self.answer_file(self.repositories[name], file)
            return
        answers = {
            "good": (200, "") if file == "config.json" else (404, "EntryNotFound"),
            "gated": (403, "GatedRepo"),
            "forbidden": (403, ""),
            "private": (401, ""),
            "none": (404, "RepoNotFound"),
            "data": (404, "EntryNotFound"),
            "broken": (503, ""),
        }
        status, code = answers.get(name, (404, ""))
        self.answer(status, CONFIG if status == 200 else b"", {"X-Error-Code": code} if code else {})

    def answer_file(self, repository: Repository, file: str) -> None:
        self.tokens.append(self.headers["Authorization"])
        if file not in repository.files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        elif file in repository.refused:
            self.answer(repository.refused[file], b"")
        elif repository.moved_to and file.endswith(".safetensors"):
            self.answer(302, b"", {"Location": repository.moved_to + self.path})
        else:
            content, size = repository.files[file]
            said = self.headers["Range"] if repository.ranges else None
            begin, end = 0, size
            if said is not None:
                begin, end = map(int, said.removeprefix("bytes=").split("-"))
                end = min(end + 1, size)
            body = content[begin:end] + bytes(max(0, end - max(begin, len(content))))
            place = {"Content-Range": f"bytes {begin}-{end - 1}/{size}"} if said is not None else {}
            self.asked.append((file, said or "", len(body)))
            self.sent.append((repository, file))
            self.answer(200 if said is None else 206, body, place)

    def answer(self, status: int, body: bytes, more: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        about = {"ETag": f'"{crc32(body):08x}"', "X-Repo-Commit": "a" * 40, "Content-Length": str(len(body))}
        for name, value in (about | dict(more)).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as address:
        yield address


@pytest.fixture
def hub(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """huggingface_hub with the local server and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for module in (reader, hub_headers):
        monkeypatch.setattr(module, "TIMEOUT_S", 30)  # a loaded machine answers late
    monkeypatch.setattr(Hub, "repositories", {})
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(Hub, "sent", [])
    monkeypatch.setattr(Hub, "tokens", [])
    hub_headers.headers.cache_clear()
    use(monkeypatch, server)
    return monkeypatch


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def parameters(capsys: Capture) -> int:
    assert run(["params", "hf:llmbench/good", "--format", "json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["model"] == "good"
    return int(model["parameters"]["total"])


def refusal(capsys: Capture, repository: str, code: int) -> str:
    """stderr of a command that must fail: one sentence and a hint."""
    assert run(["params", f"hf:{repository}"]) == code
    out, err = capsys.readouterr()
    error, hint = err.removeprefix("error: ").strip().split("\n\nhint: ")
    assert out == ""
    assert "\n" not in error + hint
    return err


def test_a_config_is_read_and_stays_in_the_cache(hub: pytest.MonkeyPatch, capsys: Capture) -> None:
    assert parameters(capsys) == 124_439_808
    use(hub, "http://127.0.0.1:1")
    assert parameters(capsys) == 124_439_808


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("gated", 3, ["is gated", "/llmbench/gated", "hf auth login"]),
        ("forbidden", 3, ["is gated"]),
        ("private", 2, ["there is no public repository `llmbench/private`", "hf auth login"]),
        ("none", 2, ["there is no public repository `llmbench/none`", "check the name"]),
        ("data", 2, ["has no config.json", "original model"]),
        ("broken", 3, ["with the status 503", "try again later"]),
        ("a--b", 2, ["is not the name of a repository"]),
    ],
)
def test_refusals_of_the_hub(name: str, code: int, says: list[str], hub: pytest.MonkeyPatch, capsys: Capture) -> None:
    err = refusal(capsys, f"llmbench/{name}", code)
    for text in says:
        assert text in err


def test_without_a_network(hub: pytest.MonkeyPatch, capsys: Capture) -> None:
    """A closed port refuses at once, an open port that never answers must not hold the command up."""
    hub.setattr(reader, "TIMEOUT_S", TIMEOUT_S)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for endpoint in ("http://127.0.0.1:1", f"http://127.0.0.1:{silent.getsockname()[1]}"):
            use(hub, endpoint)
            start = time.perf_counter()
            assert f"cannot reach {endpoint}" in refusal(capsys, "llmbench/good", 3)
            assert time.perf_counter() - start < 10  # 2 s on an idle machine; huggingface_hub alone takes 25 s


def test_offline_mode_is_named(hub: pytest.MonkeyPatch, capsys: Capture) -> None:
    hub.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(capsys, "llmbench/good", 3)


def test_the_form_of_a_name(capsys: Capture) -> None:
    assert run(["params", "hf:gpt2"]) == 2
    assert "does not have the form hf:organisation/name" in capsys.readouterr().err


def test_the_hub_without_its_package(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert install_hint("hf") in refusal(capsys, "openai-community/gpt2", 3)


LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "torch_dtype": "bfloat16",
}
INDEX = "model.safetensors.index.json"
Shapes = dict[str, tuple[int, ...]]


def layer(index: int) -> Shapes:
    at = f"model.layers.{index}."
    return {
        **{f"{at}self_attn.{name}_proj.weight": (64, 64) for name in "qo"},
        **{f"{at}self_attn.{name}_proj.weight": (32, 64) for name in "kv"},
        **{f"{at}mlp.{name}_proj.weight": (96, 64) for name in ("gate", "up")},
        f"{at}mlp.down_proj.weight": (64, 96),
        **{f"{at}{name}_layernorm.weight": (64,) for name in ("input", "post_attention")},
    }


OUTSIDE: Shapes = {"model.embed_tokens.weight": (128, 64), "model.norm.weight": (64,), "lm_head.weight": (128, 64)}


def safetensors(shapes: Shapes, dtype: str = "BF16", comment: str = "") -> tuple[bytes, int]:
    """Return the header of a file with its length, and the size of the file."""
    fields: dict[str, Any] = {"__metadata__": {"comment": comment}}
    at = 0
    for name, shape in shapes.items():
        end = at + prod(shape) * {"BF16": 2, "F32": 4}[dtype]
        fields[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(fields).encode()
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + at


def whole(text: bytes) -> tuple[bytes, int]:
    return text, len(text)


def sharded(long: int = 0) -> dict[str, tuple[bytes, int]]:
    """Three files: the weights of the second layer are in fp32, and the header of the third has `long` more bytes."""
    files = {
        "a.safetensors": (layer(0), "BF16", ""),
        "b.safetensors": (layer(1), "F32", ""),
        "c.safetensors": (OUTSIDE, "BF16", "x" * long),
    }
    index = {"weight_map": {name: file for file, (shapes, _, _) in files.items() for name in shapes}}
    return {
        "config.json": whole(json.dumps(LLAMA).encode()),
        INDEX: whole(json.dumps(index).encode()),
        **{name: safetensors(*file) for name, file in files.items()},
    }


def model_of(capsys: Capture, *arguments: str, command: str = "params") -> dict[str, Any]:
    assert run([command, *arguments, "--format", "json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    return dict(model)


def on_disk(folder: Path, files: dict[str, tuple[bytes, int]]) -> str:
    for name, (content, size) in files.items():
        with (folder / name).open("wb") as file:
            file.write(content)
            file.truncate(size)
    return str(folder)


def test_headers_of_the_hub_equal_those_of_a_folder(hub: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    """The answer is that of the same files on a disk. Only headers are asked for, and once for several answers."""
    files = sharded(long=3 * hub_headers.FIRST_BYTES)
    Hub.repositories["parts"] = Repository(files)
    remote = model_of(capsys, "hf:llmbench/parts")
    local = model_of(capsys, on_disk(tmp_path, files))
    assert remote["weights_from"] == local["weights_from"] == "the files"
    assert remote["stored_components"] == local["stored_components"]
    assert remote["stored_bytes"] == 2 * (2 * 128 * 64 + 64) + (2 + 4) * sum(map(prod, layer(0).values()))
    assert remote["notes"] == []
    asked = [(name, said) for name, said, _ in Hub.asked if name.endswith(".safetensors")]
    assert sorted(name[0] for name, _ in asked) == ["a", "b", "c", "c"]
    length = len(files["c.safetensors"][0])
    assert ("c.safetensors", f"bytes={hub_headers.FIRST_BYTES}-{length - 1}") in asked
    memory = model_of(capsys, "hf:llmbench/parts", "--phase", "inference", command="memory")
    assert memory["parts_bytes"]["weights"] == remote["stored_bytes"]
    assert len(asked) == sum(name.endswith(".safetensors") for name, _, _ in Hub.asked)


def test_one_file_needs_no_index(hub: pytest.MonkeyPatch, capsys: Capture) -> None:
    shapes = {**layer(0), **layer(1), **OUTSIDE}
    config = whole(json.dumps(LLAMA).encode())
    Hub.repositories["one"] = Repository({"config.json": config, "model.safetensors": safetensors(shapes)})
    one = model_of(capsys, "hf:llmbench/one")
    assert one["stored_bytes"] == 2 * sum(map(prod, shapes.values()))
    assert one["weights_from"] == "the files"


def test_headers_are_read_only_for_bytes_of_weights(hub: pytest.MonkeyPatch, capsys: Capture) -> None:
    Hub.repositories["parts"] = Repository(sharded())
    for arguments in (["flops"], ["kvcache"], ["memory"], ["params", "--weights", "fp8"]):
        assert run([*arguments, "hf:llmbench/parts", "--format", "json"]) == 0
    capsys.readouterr()
    assert {name for name, _, _ in Hub.asked} == {"config.json"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ranges": False}, "does not answer requests for a part of a file"),
        ({"refused": {"b.safetensors": 403}}, "the repository `llmbench/parts` is gated"),
        ({"refused": {"b.safetensors": 429}}, "answered the request for b.safetensors"),
        ({"refused": {INDEX: 503}}, "answered the request for model.safetensors.index.json"),
        ({"without": "c.safetensors"}, "has no c.safetensors"),
        ({"without": INDEX}, "has no model.safetensors"),
        ({"with": {"a.safetensors": (b"\xff" * 8, 1000)}}, "truncated or damaged"),
        ({"with": {"a.safetensors": (b"", 4)}}, "truncated or damaged"),
        ({"with": {INDEX: whole(b"[]")}}, "is not an index of safetensors"),
        ({"with": {INDEX: whole(b'{"weight_map": {"a": "../a.safetensors"}}')}}, "is not the name of a file"),
    ],
)
def test_without_headers_a_note_gives_the_reason(
    change: dict[str, Any], reason: str, hub: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The config then says the format: all weights in bf16."""
    files = sharded() | change.pop("with", {})
    files.pop(change.pop("without", ""), None)
    Hub.repositories["parts"] = Repository(files, **change)
    model = model_of(capsys, "hf:llmbench/parts")
    (note,) = model["notes"]
    assert note.startswith("the bytes of the weights are those of the config")
    assert reason in note
    assert (model["weights_from"], model["stored_bytes"]) == ("the config", 2 * model["parameters"]["total"])


def test_too_many_files_are_not_read(hub: pytest.MonkeyPatch, capsys: Capture) -> None:
    hub.setattr(hub_headers, "MOST_FILES", 2)
    parts = Repository(sharded())
    Hub.repositories["parts"] = parts
    assert "names 3 files" in model_of(capsys, "hf:llmbench/parts")["notes"][0]
    # A late request of another test can be answered during this one, so only requests for these files count.
    assert {file for repository, file in Hub.sent if repository is parts} <= {"config.json", INDEX}


def test_hf_quant_config_of_the_hub(hub: pytest.MonkeyPatch, capsys: Capture) -> None:
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "exclude_modules": ["lm_head"]}}
    files = {"config.json": whole(json.dumps(LLAMA).encode()), reader.BESIDE: whole(json.dumps(beside).encode())}
    Hub.repositories["quantised"] = Repository(files)
    model = model_of(capsys, "hf:llmbench/quantised")
    assert (model["weights_format"], model["weights_from"]) == ("fp8-tensor,static=1", reader.BESIDE)


def test_the_token_stays_on_the_hub(hub: pytest.MonkeyPatch, capsys: Capture) -> None:
    """The hub sends requests for weights to another server, which must not get the token of the user."""
    hub.setenv("HF_TOKEN", "hf_secret")
    with serving() as other:
        Hub.repositories["parts"] = Repository(sharded(), moved_to=other)
        Hub.repositories["moved"] = Repository(sharded())
        moved = Hub.answer_file

        def answer_file(self: Hub, repository: Repository, file: str) -> None:
            moved(self, Hub.repositories["moved"] if self.headers["Host"] in other else repository, file)

        hub.setattr(Hub, "answer_file", answer_file)
        assert model_of(capsys, "hf:llmbench/parts")["weights_from"] == "the files"
    assert set(Hub.tokens) == {"Bearer hf_secret", None}


def test_a_config_in_the_cache_without_a_network(hub: pytest.MonkeyPatch, capsys: Capture) -> None:
    Hub.repositories["parts"] = Repository(sharded())
    assert run(["flops", "hf:llmbench/parts", "--format", "json"]) == 0
    capsys.readouterr()
    use(hub, "http://127.0.0.1:1")
    config, note = model_of(capsys, "hf:llmbench/parts")["notes"]
    assert "of commit" in config
    assert "in the local cache: cannot reach http://127.0.0.1:1" in config
    assert "cannot reach http://127.0.0.1:1 to read model.safetensors.index.json of `llmbench/parts`" in note
