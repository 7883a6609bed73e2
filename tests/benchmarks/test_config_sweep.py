"""The sweep over transformers' default configs, on a sample of model types."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import pytest

from benchmarks import config_sweep
from benchmarks.config_sweep import Reading, compare, main, read

SAMPLE = {
    "albert": "exact",
    "bart": "exact",
    "gemma3n_text": "exact",
    "gpt2": "exact",
    "llava": "exact",
    "mamba2": "exact",
    "modernbert": "exact",
    "perceiver": "refused",
    "qwen3_moe": "exact",
    "t5": "exact",
    "vit": "refused",
    "xlnet": "approximate",
}
"""The outcome of each model type. One type or more of each kind."""


def test_a_sample_has_the_expected_outcomes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [text for name in SAMPLE for text in ("--type", name)]
    monkeypatch.setattr(sys, "argv", ["config_sweep.py", *arguments, "--format", "json"])
    assert main() == 0
    answer = json.loads(capsys.readouterr().out)
    assert {row["model_type"]: row["outcome"] for row in answer["model_types"]} == SAMPLE
    for row in answer["model_types"]:
        assert bool(row["reason"]) == (row["outcome"] != "exact")
        if row["outcome"] == "exact":
            assert row["parameters"] == row["expected"]


def counts(**changes: int) -> dict[str, int]:
    return {"total": 10, "active": 8, "active_matmul": 6, "buffers": 0, **changes}


@pytest.mark.parametrize(
    ("reading", "expected", "outcome"),
    [
        (Reading(counts=counts()), ("Class", counts()), "exact"),
        (Reading(counts=counts()), ("Class", counts(total=11)), "wrong"),
        (Reading(counts=counts()), ("Class", counts(active_matmul=5)), "wrong"),
        (Reading(counts=counts(), approximate=("why",)), ("Class", counts(total=11)), "approximate"),
        (Reading(counts=counts()), "no class", "no oracle"),
        (Reading(refused="unknown"), "", "refused"),
        (Reading(failed="KeyError"), "", "wrong"),
    ],
)
def test_outcomes(reading: Reading, expected: Any, outcome: str) -> None:
    assert compare("a", "causal", "both", reading, expected).outcome == outcome


def test_a_failure_of_the_importer_is_a_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(values: dict[str, Any], *, name: str) -> None:
        raise KeyError("hidden_size")

    monkeypatch.setattr(config_sweep, "from_config", fail)
    assert "KeyError: 'hidden_size'" in read({"model_type": "llama"}).failed


def test_a_process_that_ends_costs_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker of this test ends at a certain model type."""
    monkeypatch.setattr(config_sweep, "work", _ends_at_bert)
    rows = list(config_sweep.sweep(["gpt2", "bert", "llama"]))
    assert [row.outcome for row in rows] == ["no oracle", "wrong", "no oracle"]
    assert "the process ended with code 7" in rows[1].reason


def _ends_at_bert(connection: Any) -> None:
    with contextlib.suppress(EOFError):
        while True:
            _, (model_type,) = connection.recv()
            if model_type == "bert":
                sys.exit(7)
            connection.send(("causal", "no default config"))
