"""Models of the Hugging Face hub. A local server answers as the hub does. Each refusal is a sentence with a hint."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from llmbench.cli import run
from llmbench.errors import install_hint
from llmbench.spec.catalog import load_bundled
from llmbench.spec.huggingface import hub as reader
from llmbench.spec.huggingface.hub import TIMEOUT_S

from ..oracles.huggingface_export import to_config

Capture = pytest.CaptureFixture[str]
CONFIG = json.dumps(to_config(load_bundled("gpt2"))).encode()


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does. The name of the repository chooses the answer."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        answers = {
            "good": (200, ""),
            "gated": (403, "GatedRepo"),
            "forbidden": (403, ""),
            "private": (401, ""),
            "none": (404, "RepoNotFound"),
            "data": (404, "EntryNotFound"),
            "broken": (503, ""),
        }
        status, code = answers.get(self.path.split("/")[2], (404, ""))  # huggingface_hub also asks for other files
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        body = CONFIG if status == 200 else b""
        for name, value in (("ETag", '"0123"'), ("X-Repo-Commit", "a" * 40), ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def hub(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """huggingface_hub with the local server and an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(reader, "TIMEOUT_S", 30)  # a loaded machine answers late
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
