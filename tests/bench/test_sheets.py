"""The presentation of an experiment's rows: headings in words, curves, remarks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from llmbench.bench.experiments import EXPERIMENTS, find_experiment, heads
from llmbench.bench.experiments.experiment import Ask, Chart
from llmbench.bench.results.sheets import curves, has_curves, remarks, sheets
from llmbench.bench.results.words import FIELDS, in_words
from llmbench.measure.measurement import Measurement, MemoryPeak
from llmbench.measure.results import Row

CHART = Chart("seq_len", "tokens of a sequence")


def row(name: str, *samples_s: float, length: int = 64, notes: tuple[str, ...] = (), **fields: Any) -> Row:
    """A row with a time, or one without a time and with the given status."""
    if samples_s:
        fields |= {"status": "ok", "measurement": Measurement(samples_s=samples_s, clock="cpu", notes=notes)}
    else:
        fields = {"reason": "no room", **fields}
    case = {"mask": "causal", "pass": "both", "seq_len": length}
    return Row(experiment="attention", case=case, implementation=name, **fields)


def test_curves_are_those_of_the_table() -> None:
    """Time and peak by length, a candidate's status where it has no time, and no curve for a single length."""
    known: dict[str, Any] = {"memory": MemoryPeak(added_bytes=30, by="tensors"), "extra": {"input_bytes": 12}}
    rows = [
        row("flash", 0.25, length=64, **known),
        row("flash", 0.5, length=128, **known),
        row("standard", 0.25, length=64, **known),
        row("standard", length=128, status="OOM"),
        *(row("flex", length=length, status="n/a") for length in (64, 128)),
    ]
    common, (sheet,) = sheets(rows, CHART)
    assert (common, sheet.title) == ("causal · forward and backward", "")
    time, peak = curves([sheet], CHART)
    assert [series.label for series in time.series] == ["flash", "standard (OOM at 128)", "flex (n/a)"]
    assert [series.points for series in time.series] == [[(64, 0.25), (128, 0.5)], [(64, 0.25)], []]
    assert [series.points for series in peak.series] == [[(64, 42), (128, 42)], [(64, 42)], []]
    cases = [row.case for row in rows]
    assert has_curves(cases, CHART)
    assert not has_curves(cases, None)
    assert not has_curves(cases[:1], CHART)
    assert curves(sheets([rows[0], rows[2]], CHART)[1], CHART) == []


def test_sheets_are_named_by_the_fields_that_differ() -> None:
    cases: list[dict[str, Any]] = [
        {"what": "against dense", "tokens": 32, "dtype": "fp32"},
        {"what": "experts alone", "tokens": 32, "dtype": "fp32", "routing": "even"},
    ]
    rows = [Row(experiment="moe", case=case, implementation="a", status="OOM", reason="no room") for case in cases]
    common, charts = sheets(rows, None)
    assert common == "32 tokens · fp32"
    assert [sheet.title for sheet in charts] == ["against dense", "experts alone, even routing"]


def test_remarks_stand_below_the_rows() -> None:
    """Rows with the same remark share a line. Kernels have short names."""
    kernel = "void pytorch_flash::flash_fwd_kernel<Traits<128, 64>, false>(pytorch_flash::Params)"
    rows = [
        row("flash", 1.0, 1.2, 1.4, 1.6, notes=("it cannot be captured",), kernels=(kernel,)),
        row("sdpa", 1.0, 2.0, 3.0, 4.0, notes=("it cannot be captured",), kernels=(kernel,)),
        row("sdpa", 1.0, 1.0),
        *(row(name, status="n/a", reason="no GPU") for name in ("a", "b", "b")),
    ]
    assert list(remarks(rows)) == [
        "a, b: n/a, no GPU",
        "flash, sdpa: it cannot be captured",
        "flash, sdpa: noisy",
        "flash, sdpa ran pytorch_flash::flash_fwd_kernel",
    ]
    assert list(remarks(rows[1:2]))[1].startswith("sdpa: noisy: IQR is 60%")


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name != "collectives"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_cases_are_shown_in_words(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field of every case, with the shapes of a GPU too, although there is none."""
    monkeypatch.setattr(heads, "free_bytes", lambda device: None)
    for group in find_experiment(name).groups(Ask(quick=False, device=torch.device(device), dtype="bf16")):
        missing = set(group.case) - set(FIELDS)
        assert not missing, f"add {missing} to FIELDS in llmbench/bench/results/words.py"
        assert not any("_" in words or "{" in words for words in in_words(group.case)), group.case
