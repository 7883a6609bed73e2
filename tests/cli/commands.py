"""Run a command in this process, and return what it wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmbench.cli import run

Capture = pytest.CaptureFixture[str]


def answer(capsys: Capture, *arguments: str) -> str:
    """stdout of a command that succeeds and says nothing on stderr."""
    code = run([*arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), err
    return out


def rows(capsys: Capture, *arguments: str) -> list[dict[str, Any]]:
    """The rows of a command's JSON."""
    document = json.loads(answer(capsys, *arguments, "--format", "json"))
    assert list(document)[:3] == ["schema", "inputs", "environment"]
    (key,) = list(document)[3:]
    return document[key]


def refusal(capsys: Capture, *arguments: str, code: int = 2) -> str:
    """stderr of a command that must fail: nothing on stdout, an error, no traceback."""
    assert run([*arguments]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    return err
