"""A small model, a small text and short settings. One thread, because more threads would slow such small models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A file of 6,000 bytes with a pattern that a small model can learn."""
    path = tmp_path / "book.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 134)
    return path


@pytest.fixture(autouse=True)
def no_reference_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fixed peak in place of a measured one, which takes half a second per run."""
    monkeypatch.setattr("llmbench.learn.session.measured_peak", lambda device, settings: (1e11, "fixed"))
