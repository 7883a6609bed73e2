"""Files of `llmbench validate` with one bad row: it is refused with its reason, and the other rows are answered."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llmbench.cli.application import BUG, run
from llmbench.validation import weights
from llmbench.validation.kinds import Kind, validate

from .inputs import quickly

PUBLISHED = Path(__file__).parents[2] / "benchmarks" / "published"
SLOW = "re:(a|a)*(\\w+\\.?)+(\\w+)+Q"


def changed(tmp_path: Path, file: str, cells: dict[str, str]) -> Path:
    """A file with a published row, the same row with other cells, and the same row again."""
    with (PUBLISHED / f"{file}.csv").open(encoding="utf-8", newline="") as lines:
        first = next(csv.DictReader(lines))
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.DictWriter(lines, [*dict.fromkeys([*first, *cells])])
        writer.writeheader()
        writer.writerows([first, first | cells, first])
    return path


def listed(**config: Any) -> dict[str, str]:
    return {"quantization_config": json.dumps(config)}


@pytest.mark.parametrize(
    ("kind", "file", "cells"),
    [
        *(
            ("weights", "checkpoints", cells)
            for cells in (
                listed(quant_method="fp8", ignored_layers=["re:("]),
                listed(quant_method="gptq", bits=4, dynamic={"+:(": {"bits": 8}}),
                listed(quant_method="fp8", ignored_layers=[SLOW]),
                listed(quant_method="fp8", ignored_layers=["x" * 200_000]),
                {"bytes": "1e308"},
                {"bytes": "1e-300"},
                {"model": "x" * 200_000, "base": ""},
                {"base": "llama2-7b" + "-it" * 60_000},
            )
        ),
        *(
            ("engine", "engine_logs", cells)
            for cells in (
                {"total_gib": "1e308"},
                {"total_gib": "0"},
                {"util": "1e15"},
                {"tp": "1000000000"},
                {"gpu": "A-" * 70_000},
                {"other_layout": "pp=1000000"},
            )
        ),
        ("memory", "megatron_runs", {"pp": "100", "vp": "100"}),
        ("memory", "megatron_runs", {"mem_max_last": "1e308"}),
        ("memory", "megatron_runs", {"pp_layout": "E(t*99999)*99999L", "pp": "2"}),
        ("memory", "torchtune_runs", {"peak_gib": "9" * 400}),
        ("kv", "kv_formats", {"model": "(" * 130_000}),
    ],
)
def test_a_bad_row_is_refused_alone(kind: Kind, file: str, cells: dict[str, str], tmp_path: Path) -> None:
    with quickly():
        first, bad, last = validate(kind, changed(tmp_path, file, cells)).items
    assert bad.answer is None
    assert bad.reason
    assert first.answer == last.answer is not None


def test_a_bug_with_one_row_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = weights.answer
    monkeypatch.setattr(weights, "answer", lambda row: 1 / 0 if row.line == 3 else usual(row))
    path = changed(tmp_path, "checkpoints", {})
    assert run(["validate", "weights", str(path), "--format", "json"]) == BUG
    out, err = capsys.readouterr()
    first, bad, last = json.loads(out)["items"]
    assert "bug with this row: ZeroDivisionError" in bad["reason"]
    assert first["ours"] == last["ours"] > 0
    assert "this is a bug in llmbench" in err


def test_a_row_names_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}", encoding="utf-8")
    for name in ("mine", "x.gguf", "hf:org/x"):
        item = validate("weights", changed(tmp_path, "checkpoints", {"base": name})).items[1]
        assert "no bundled model" in str(item.reason)
