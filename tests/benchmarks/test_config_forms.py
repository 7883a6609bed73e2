"""The comparison of the two forms of changed configs, on a sample of model types."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from benchmarks import config_forms
from benchmarks.config_forms import figures, main


def run(monkeypatch: pytest.MonkeyPatch, *model_types: str) -> int:
    arguments = [text for name in model_types for text in ("--type", name)]
    monkeypatch.setattr(sys, "argv", ["config_forms.py", *arguments])
    return main()


def test_a_sample_has_no_difference(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "bailing_hybrid", "deepseek_v4", "gemma4_text", "llava", "t5") == 0
    assert capsys.readouterr().out == "0 differences\n"


def test_a_difference_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def without_layers(config: dict[str, Any]) -> Any:
        return figures({key: value for key, value in config.items() if key != "per_layer_config"})

    monkeypatch.setattr(config_forms, "figures", without_layers)
    assert run(monkeypatch, "gemma4_text") == 1
    assert "gemma4_text: global_head_dim = " in capsys.readouterr().out


def test_a_refused_and_an_approximate_config_have_no_figures() -> None:
    assert figures({"model_type": "llama"}) is not None
    assert figures({"model_type": "llama", "use_memory": True}) is None
    assert figures({"model_type": "llama", "memory_size": 8}) is None
