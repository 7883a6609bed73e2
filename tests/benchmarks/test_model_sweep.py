"""The sweep over causal language models (benchmarks/model_sweep.py), with three of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "model_sweep.py"


def test_the_sweep_says_what_becomes_of_each_type() -> None:
    """One model loads, llmbench refuses one, and transformers cannot make one small."""
    types = ("llama", "git", "musicgen")
    chosen = [word for name in types for word in ("--type", name)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--format", "json", *chosen], capture_output=True, text=True, check=True
    )
    answer = json.loads(done.stdout)
    llama, git, musicgen = answer["rows"]
    assert llama["outcome"] == "equal"
    assert 0 <= llama["relative_error"] <= 1e-5
    assert git["outcome"] == "refused"
    assert "git" in git["reason"]
    assert musicgen["outcome"] == "not tiny"
    assert answer["counts"] == {"equal": 1, "refused": 1, "not tiny": 1}
