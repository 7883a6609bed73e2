"""`profile` and `bench` exit with 1 if a row is INCORRECT or FAILED, and only then."""

from __future__ import annotations

import csv
import functools
import importlib
import io
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from torch import Tensor

from llmbench.bench import profile
from llmbench.bench.experiments import experiment
from llmbench.bench.extra_candidates import EXTRA_CANDIDATES, ExtraCandidate
from llmbench.cli import run
from llmbench.errors import CannotRunError
from llmbench.measure.reference import Sizes
from llmbench.model.implementations.plain import STANDARD
from tests.measure.rows import row


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few samples, small reference measurements, no interpreter."""
    importlib.import_module("llmbench.model.implementations.kernels")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    small = functools.partial(profile.profile, pace=experiment.QUICK, sizes=Sizes(64, 2**16, 10))
    monkeypatch.setattr(profile, "profile", small)


def right(*args: Any) -> Tensor:
    """Attention by another function."""
    return STANDARD.attend(*args)


def doubled(*args: Any) -> Tensor:
    """Attention multiplied by two."""
    return 2 * STANDARD.attend(*args)


def raising(problem: Exception) -> Callable[..., Tensor]:
    """Attention that raises the error."""

    def attend(*args: Any) -> Tensor:
        raise problem

    return attend


@pytest.mark.parametrize(
    ("attend", "status", "code"),
    [
        (right, "ok", 0),
        (doubled, "INCORRECT", 1),
        (raising(ValueError("broken")), "FAILED", 1),
        (raising(MemoryError("full")), "OOM", 0),
        (raising(CannotRunError("not here")), "n/a", 0),
    ],
)
def test_the_exit_code_of_profile_follows_its_rows(
    attend: Any, status: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(
        EXTRA_CANDIDATES, "flex", ExtraCandidate("", lambda: STANDARD._replace(name="flex", attend=attend))
    )
    arguments = ["profile", "attention", "--impl", "flex", "--model", "smollm2-135m", "--seq", "24", "--batch", "1"]
    assert run([*arguments, "--device", "cpu", "--format", "csv"]) == code
    flex, standard = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (flex["implementation"], flex["status"]) == ("flex", status)
    assert (standard["implementation"], standard["status"]) == ("standard", "ok")
    assert {row["piece"] for row in (flex, standard)} == {"attention"}
    assert {row["seq_len"] for row in (flex, standard)} == {"24"}
    assert bool(flex["seconds"]) == (status == "ok") != bool(flex["reason"])


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("INCORRECT", 1), ("FAILED", 1), ("OOM", 0), ("n/a", 0)])
def test_the_exit_code_of_bench_follows_its_rows(
    status: str, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [msgspec.structs.replace(original, case={}) for original in (row("a"), row("b", status=status))]
    monkeypatch.setattr(experiment, "run", lambda *args, **more: iter(rows))
    assert run(["bench", "activations", "--device", "cpu", "--format", "json"]) == code
    assert '"b"' in capsys.readouterr().out


def test_csv_has_the_rows_of_all_cases_in_one_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each row has its case and status. A time is a number or empty."""
    cases: list[tuple[str, str, int]] = [("a", "ok", 8), ("b", "OOM", 8), ("a", "ok", 16)]
    rows = [msgspec.structs.replace(row(name, status=status), case={"seq_len": seq}) for name, status, seq in cases]
    monkeypatch.setattr(experiment, "run", lambda *args, **more: iter(rows))
    assert run(["bench", "attention", "--device", "cpu", "--format", "csv"]) == 0
    table = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    shown = [
        (line["seq_len"], line["implementation"], line["status"], line["reason"], line["seconds"]) for line in table
    ]
    assert shown == [
        ("8", "a", "ok", "", "0.0105"),
        ("8", "b", "OOM", "for a reason", ""),
        ("16", "a", "ok", "", "0.0105"),
    ]
