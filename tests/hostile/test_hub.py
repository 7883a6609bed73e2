"""A hub that is slow, endless or wrong: each try ends with a sentence, within the limits of time and of bytes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from huggingface_hub import constants

from llmbench.cli import run
from llmbench.errors import CannotRunError, LLMBenchError, SpecError
from llmbench.spec.huggingface import hub, hub_headers, hub_requests
from llmbench.spec.weights.on_hub import with_headers

LIMIT_S = 0.5
LONGEST_S = 4.0
"""The time limit of a try, far more than LIMIT_S for a loaded machine, and far less than what the server does."""

CONFIG = json.dumps({"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}).encode()
INDEX = json.dumps({"weight_map": {"a": "a.safetensors"}}).encode()
HEADER = b'{"t":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}'
SHARD = len(HEADER).to_bytes(8, "little") + HEADER + b"x"


class Hostile(BaseHTTPRequestHandler):
    """The name of the repository chooses the behaviour. `at-FILE` in the name spares the other files."""

    stop: ClassVar[threading.Event]
    sent: ClassVar[int] = 0

    def do_GET(self) -> None:
        name, file = self.path.split("/")[2], self.path.rpartition("/")[2]
        what, _, where = name.partition("-at-")
        if where and where != file:
            self.head(200, len(CONFIG if file == "config.json" else INDEX))
            self.wfile.write(CONFIG if file == "config.json" else INDEX)
            return
        match what:
            case "slow":
                self.head(206 if self.headers["Range"] else 200, 10**6)
                self.drip(b" ", 0.05)
            case "stall":
                self.head(200, 10**6)
                self.stop.wait()
            case "mute":
                self.stop.wait()
            case "slow-status":
                self.drip(b"H", 0.05)
            case "slow-headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                self.drip(b"x", 0.05)
            case "endless":
                self.head(200, None)
                self.drip(b" " * 2**20, 0)
            case "busy":
                self.head(429, 0, {"Retry-After": "3600"})
            case "round":
                self.head(302, 0, {"Location": self.path})
            case "moved":  # the answer that sends the request to another address has an endless content
                self.head(302, None, {"Location": self.path.replace("moved", "good")})
                self.drip(b" " * 2**20, 0)
            case "good":
                self.head(200, len(CONFIG))
                self.wfile.write(CONFIG)
            case "file":
                self.head(302, 0, {"Location": "file:///etc/passwd"})
            case "gzip":
                self.head(200, 100, {"Content-Encoding": "gzip, gzip"})
                self.wfile.write(b" " * 100)
            case "part":
                self.head(206, len(CONFIG))
                self.wfile.write(CONFIG)
            case "private":
                self.head(401, 0)
            case "equal":  # all files of the index are the same
                self.head(206, len(SHARD), {"Content-Range": f"bytes 0-{len(SHARD) - 1}/{len(SHARD)}"})
                self.wfile.write(SHARD)
            case "commit":
                self.head(200, len(CONFIG), {"X-Repo-Commit": "../../../x"})
                self.wfile.write(CONFIG)

    def head(self, status: int, length: int | None, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        about = {"X-Repo-Commit": "a" * 40, "Content-Range": "bytes 0-99999/1000000", **(more or {})}
        for name, value in (about | ({} if length is None else {"Content-Length": str(length)})).items():
            self.send_header(name, value)
        self.end_headers()

    def drip(self, text: bytes, pause_s: float) -> None:
        try:
            while not self.stop.wait(pause_s):
                self.wfile.write(text)
                type(self).sent += len(text)
        except OSError:  # the reader closed the connection
            pass

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Hostile, "stop", threading.Event(), raising=False)
    monkeypatch.setattr(Hostile, "sent", 0)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_requests, "ALL_S", LIMIT_S)
    hub_headers.headers.cache_clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as served:
        served.daemon_threads, served.block_on_close = True, False
        threading.Thread(target=served.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{served.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        files = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
        yield endpoint
        Hostile.stop.set()
        served.shutdown()


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("slow", CannotRunError, "did not send the config of `llmbench/slow` within 0.5 s"),
        ("stall", CannotRunError, "did not send the config"),
        ("mute", CannotRunError, "cannot reach"),
        ("slow-status", CannotRunError, "cannot reach"),
        ("slow-headers", CannotRunError, "cannot reach"),
        ("busy", CannotRunError, "with the status 429"),
        ("round", CannotRunError, "from one address to the next, 10 times"),
        ("file", CannotRunError, "sends a request to file:///etc/passwd, which is no address"),
        ("gzip", CannotRunError, "sent the config compressed"),
        ("part", CannotRunError, "with the status 206"),
        ("private-at-hf_quant_config.json", CannotRunError, "hf_quant_config.json of .* with the status 401"),
        ("endless", SpecError, "it has more than 33,554,432 bytes"),
        ("commit", CannotRunError, "does not say the commit"),
        ("slow-at-hf_quant_config.json", CannotRunError, "did not send hf_quant_config.json"),
    ],
)
def test_a_hostile_hub(
    name: str, error: type[LLMBenchError], says: str, server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if name == "endless":  # the limit of bytes must end the download
        monkeypatch.setattr(hub_requests, "ALL_S", 30.0)
    start = time.monotonic()
    with pytest.raises(error, match=says):
        hub.read_config(f"llmbench/{name}")
    assert time.monotonic() - start < (30 if name == "endless" else LONGEST_S)
    assert Hostile.sent < 2**26
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", ["slow-at-a.safetensors", "stall-at-a.safetensors", "mute-at-a.safetensors"])
def test_slow_headers_of_weights(name: str, server: str) -> None:
    spec = hub.read_config(f"llmbench/{name}")
    hub_headers.headers.cache_clear()
    start = time.monotonic()
    spec = with_headers(spec)
    assert time.monotonic() - start < LONGEST_S
    assert "the headers of the files were not read" in spec.notes[-1]


@pytest.mark.parametrize(
    "endpoint", ["http://[::1", "http://127.0.0.1:99999", "ftp://x", "x", "http://", "http://a\x1b"]
)
def test_an_impossible_endpoint(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(SpecError, match="no address of a server"):
        hub.read_config("llmbench/x")


def test_an_empty_endpoint_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "")
    assert hub_requests.HubRequests("llmbench/x").endpoint == "https://huggingface.co"


def test_a_cache_that_cannot_be_written(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/proc/cache")
    with pytest.raises(CannotRunError, match="cannot write to the cache"):
        hub.read_config("llmbench/x-at-model.safetensors")


def test_headers_that_need_a_slow_answer(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some versions of huggingface_hub ask the hub before the first request."""
    monkeypatch.setattr(hub_requests, "TIMEOUT_S", LIMIT_S)
    monkeypatch.setattr("huggingface_hub.utils.build_hf_headers", lambda: Hostile.stop.wait(60) and {})
    start = time.monotonic()
    with pytest.raises(CannotRunError, match="cannot reach"):
        hub.read_config("llmbench/x-at-model.safetensors")
    assert time.monotonic() - start < LONGEST_S


@pytest.mark.parametrize("place", ["/dev/null/token", "/proc/self/mem"])
def test_a_token_that_cannot_be_read(place: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", place)
    with pytest.raises(CannotRunError, match="huggingface_hub cannot be used"):
        hub.read_config("llmbench/x")


def test_a_huggingface_hub_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its module `constants` raises an error for some values of its variables."""
    (tmp_path / "huggingface_hub.py").write_text("raise ValueError('invalid literal: abc')")
    monkeypatch.delitem(__import__("sys").modules, "huggingface_hub")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run(["params", "hf:llmbench/x"]) == 3
    assert "huggingface_hub cannot be used: ValueError: invalid literal: abc" in capsys.readouterr().err


def test_an_answer_in_many_small_pieces_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_requests, "ALL_S", 30.0)
    monkeypatch.setattr(hub_requests, "MOST_PIECES", 3)
    with pytest.raises(CannotRunError, match="sent the config in more than 3 pieces"):
        hub.read_config("llmbench/slow")


def test_the_content_of_a_redirect_is_not_read(server: str) -> None:
    assert hub.read_config("llmbench/moved").hidden_size == 64
    assert Hostile.sent < 2**24


def test_headers_are_decoded_one_after_another(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of many equal files ends the reading, and so does a limit of all bytes."""
    names = {"weight_map": {f"t{number}": f"m{number}.safetensors" for number in range(40)}}
    index = hub_requests.Whole(json.dumps(names).encode(), "")
    monkeypatch.setattr(hub_requests, "ALL_S", 30.0)
    monkeypatch.setattr(hub_headers.HubRequests, "whole", lambda *_, **__: index)
    with pytest.raises(SpecError, match="tensor t is also in another file"):
        hub_headers._headers("llmbench/equal", "main")
    monkeypatch.setattr(hub_headers, "MOST_HEADERS", 10 * len(HEADER))
    monkeypatch.setattr(hub_headers, "merged", list)
    with pytest.raises(SpecError, match="the headers of llmbench/equal have more than 530 bytes"):
        hub_headers._headers("llmbench/equal", "main")
    monkeypatch.setattr(hub_headers, "MOST_TENSORS", 1)
    with pytest.raises(SpecError, match="the files of llmbench/equal have more than 1 tensors"):
        hub_headers._headers("llmbench/equal", "main")


def test_a_config_of_the_cache_is_named(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not hub.read_config("llmbench/good").notes
    monkeypatch.setattr(hub_requests, "_url", lambda *_: f"{server}/llmbench/busy/resolve/main/")
    (note,) = hub.read_config("llmbench/good").notes
    assert note.startswith("the config is that of commit aaaaaaaaaaaa in the local cache: ")
    assert note.endswith("with the status 429")


def test_messages_have_no_password(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:s3cret@127.0.0.1:9")
    assert run(["params", "hf:llmbench/other"]) == 3
    assert "s3cret" not in (error := capsys.readouterr().err)
    assert "http://127.0.0.1:9" in error
