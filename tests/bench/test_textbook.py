"""The textbook's measured claims: their figures are read from given rows, and the runs have the settings of the
claims."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch

from llmbench.bench.experiments.experiment import Ask, run
from llmbench.bench.experiments.textbook import EXPERIMENT, groups, outcomes, summary
from llmbench.bench.experiments.textbook.readings import read
from llmbench.bench.experiments.textbook.runs import RUNS, is_own
from llmbench.measure.clock import CpuClock
from llmbench.measure.measurement import Measurement, MemoryPeak
from llmbench.measure.reference import Sizes, measure_references
from llmbench.measure.results import Row
from llmbench.textbook import CLAIMS
from llmbench.textbook.claim import Reading

CPU = torch.device("cpu")
OWN: dict[str, Any] = {"run": "norm forward", "batch": 32, "seq_len": 1024, "hidden_size": 4096, "dtype": "bf16"}


def row(name: str, *samples: float, **fields: Any) -> Row:
    defaults: dict[str, Any] = {"status": "OOM", "reason": "no room"}
    if samples:
        defaults = {"status": "ok", "measurement": Measurement(samples_s=samples, clock="cpu")}
    return Row(experiment="textbook", implementation=name, **{"case": OWN, **defaults, **fields})


def rows(*all_rows: Row) -> dict[str, Row]:
    return {one.implementation: one for one in all_rows}


def reading(kind: Any, of: str, over: str) -> Reading:
    return Reading("norm forward", kind, of, over)


SLOW, FAST = row("slow", 3.0, 3.3, 3.0), row("fast", 1.0, 1.1, 1.0)


def with_memory(before: Row, added: int) -> Row:
    memory = MemoryPeak(added_bytes=added, by="tensors")
    return row(before.implementation, 1.0, memory=memory, extra={"input_bytes": 100})


@pytest.mark.parametrize(
    ("how", "figure"),
    [
        (reading("time ratio", "slow", "fast"), 3.0),
        (reading("time change", "fast", "slow"), 1 / 3 - 1),
        (reading("memory change", "small", "big"), 200 / 400 - 1),
    ],
)
def test_figures_of_rows(how: Reading, figure: float) -> None:
    big, small = with_memory(row("big", 1.0), 300), with_memory(row("small", 1.0), 100)
    measured = read(how, rows(SLOW, FAST, big, small))
    assert measured.figure == pytest.approx(figure)
    assert not measured.reason


@pytest.mark.parametrize(
    ("known_rows", "reason"),
    [
        ([], "not run"),
        ([FAST, row("slow")], "slow: OOM, no room"),
        ([FAST, row("slow", 1.0)], "cannot pair 1 samples with 3"),
    ],
)
def test_rows_without_a_figure(known_rows: list[Row], reason: str) -> None:
    measured = read(reading("time ratio", "slow", "fast"), rows(*known_rows))
    assert measured.figure is None
    assert measured.reason.startswith(reason)


def test_another_setting_decides_nothing() -> None:
    small = rows(*(replace_case(each, batch=2) for each in (SLOW, FAST)))
    measured = read(reading("time ratio", "slow", "fast"), small)
    assert measured.figure == pytest.approx(3.0)
    assert measured.reason == "this run was smaller than the setting of the claim: batch 2, 1,024 tokens, hidden 4096"


def replace_case(before: Row, **changes: Any) -> Row:
    assert before.measurement is not None
    return row(before.implementation, *before.measurement.samples_s, case=OWN | changes)


@pytest.mark.parametrize("name", RUNS)
def test_a_gpu_measures_at_the_claims_own_setting(name: str) -> None:
    on_gpu = Ask(quick=True, device=torch.device("cuda"), dtype="fp16")
    assert is_own(RUNS[name](on_gpu).case)
    assert is_own(RUNS[name](on_gpu).case | {"dtype": "fp32"})
    assert not is_own(RUNS[name](Ask(quick=True, device=CPU, dtype="fp32")).case)


def test_every_reading_has_its_run_and_its_candidates() -> None:
    ask = Ask(quick=True, device=CPU, dtype="fp32")
    names = {name: set(make(ask).names) for name, make in RUNS.items()}
    readings = [claim.reading for claim in CLAIMS if claim.reading]
    assert {each.run for each in readings} == set(RUNS)
    for each in readings:
        assert {each.of, each.over} <= names[each.run]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("quick", [True, False])
def test_runs_are_described_without_being_built(device: str, quick: bool) -> None:
    """For a GPU too, although there is none. There each claim has its own setting."""
    ask = Ask(quick=quick, device=torch.device(device), dtype="bf16" if device == "cuda" else "fp32")
    by_run = {group.case["run"]: group for group in groups(ask)}
    assert set(by_run) == set(RUNS)
    if device == "cuda":
        assert {key: by_run["flash 4096"].case[key] for key in ("model", "batch", "seq_len")} == {
            "model": "gpt2",
            "batch": 8,
            "seq_len": 4096,
        }
        norm = by_run["norm forward"].case
        assert (norm["batch"], norm["seq_len"], norm["hidden_size"]) == (32, 1024, 4096)
        assert by_run["decode 1"].case["context"] == 2048


def test_the_cheap_runs_decide_their_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdicts on measured rows. The test of the command has the other runs."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ask = Ask(quick=True, device=CPU, dtype="fp32")
    references = measure_references(CpuClock(), torch.float32, budget_s=0.01, sizes=Sizes(64, 2**16, 10))
    chosen = [RUNS[name](ask) for name in ("norm forward", "style forward", "style decode")]
    measured_rows = list(
        run([replace(group, pace=ask.pace) for group in chosen], clock=CpuClock(), references=references)
    )
    by_name = {result.claim.name: result for result in outcomes(measured_rows)}
    assert by_name["post-norm fails"].verdict == "holds if"  # recorded trainings decide
    assert by_name["RMSNorm forward"].verdict == "needs a GPU"
    samples = {
        timed_row.implementation: timed_row.measurement.samples_s
        for timed_row in measured_rows
        if timed_row.case["run"] == "norm forward" and timed_row.measurement is not None
    }
    pairs = zip(samples["LayerNorm"], samples["RMSNorm"], strict=True)
    assert by_name["RMSNorm forward"].results[0].figure == pytest.approx(median(layer / rms for layer, rms in pairs))
    assert len(by_name["LLaMA forward"].results) == 1
    assert (by_name["flash 512"].verdict, by_name["flash 512"].reason) == ("needs a GPU", "not run")
    answer = summary(ask, measured_rows)
    assert answer.key == "claims"
    assert [line["claim"] for line in answer.rows] == [claim.name for claim in CLAIMS]
    assert len(answer.table.rows) == len(CLAIMS)
    assert EXPERIMENT.summary is summary
