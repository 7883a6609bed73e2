"""The textbook's claims: analytic ones compared with figures worked out by hand, measured ones with given rows."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch

from llmbench.bench.experiments.experiment import Ask, run
from llmbench.bench.experiments.synthetic import progressions
from llmbench.bench.experiments.textbook import EXPERIMENT, groups, outcomes, summary
from llmbench.bench.experiments.textbook.claims import (
    CLAIMS,
    Claim,
    memory_change,
    outcome,
    runs,
    time_change,
    time_ratio,
)
from llmbench.bench.experiments.textbook.runs import RUNS, is_own
from llmbench.measure.clock import CpuClock
from llmbench.measure.measurement import Measurement, MemoryPeak
from llmbench.measure.reference import Sizes, measure_references
from llmbench.measure.results import Row

CPU = torch.device("cpu")
BY_NAME = {claim.name: claim for claim in CLAIMS}


def row(name: str, *samples: float, **fields: Any) -> Row:
    defaults: dict[str, Any] = {"status": "OOM", "reason": "no room"}
    if samples:
        defaults = {"status": "ok", "measurement": Measurement(samples_s=samples, clock="cpu")}
    return Row(experiment="textbook", case={"run": "a"}, implementation=name, **{**defaults, **fields})


def rows(*all_rows: Row) -> dict[str, Row]:
    return {one.implementation: one for one in all_rows}


def claim(value: Any, claimed: float, **fields: Any) -> Claim:
    return Claim(name="a", says="a", claimed=claimed, at="here", source="a test", run="a", value=value, **fields)


SLOW, FAST = row("slow", 3.0, 3.3, 3.0), row("fast", 1.0, 1.1, 1.0)


@pytest.mark.parametrize(
    ("statement", "measured", "verdict"),
    [
        (claim(time_ratio("slow", "fast"), 3.2), 3.0, "holds"),
        (claim(time_ratio("slow", "fast"), 3.4), 3.0, "does not"),
        (claim(time_ratio("slow", "fast"), 2.7), 3.0, "does not"),
        # for a gain, a larger gain is no refutation
        (claim(time_ratio("slow", "fast"), 2.7, bound="or better"), 3.0, "holds"),
        (claim(time_ratio("slow", "fast"), 3.2, bound="or better"), 3.0, "holds"),
        (claim(time_ratio("slow", "fast"), 3.4, bound="or better"), 3.0, "does not"),
        (claim(time_change("fast", "slow"), -0.6, shown="change", bound="or better"), -2 / 3, "holds"),
        (claim(time_change("fast", "slow"), -0.75, shown="change", bound="or better"), -2 / 3, "does not"),
        (claim(time_ratio("slow", "fast"), 2.7, bound="at least"), 3.0, "holds"),
        (claim(time_ratio("slow", "fast"), 2.7, bound="at most"), 3.0, "does not"),
        # a ratio of 1/3: within a tenth of 0.35, but not of 0.4
        (claim(time_change("fast", "slow"), -0.65, shown="change"), -2 / 3, "holds"),
        (claim(time_change("fast", "slow"), -0.6, shown="change"), -2 / 3, "does not"),
    ],
)
def test_verdicts(statement: Claim, measured: float, verdict: str) -> None:
    result = outcome(statement, rows(SLOW, FAST))
    assert result.measured == pytest.approx(measured)
    assert result.verdict == verdict


def test_another_setting_decides_nothing() -> None:
    """A claim that holds for every size is decided by a small model."""
    statement = claim(time_ratio("slow", "fast"), 3.0)
    result = outcome(statement, rows(SLOW, FAST), own_setting=False)
    assert (result.verdict, result.measured, result.reason) == (
        "n/a here",
        3.0,
        "not comparable: the run was smaller than the setting of the claim",
    )
    assert outcome(replace(statement, any_size=True), rows(SLOW, FAST), own_setting=False).verdict == "holds"
    assert outcome(replace(statement, run=None), rows(SLOW, FAST), own_setting=False).verdict == "holds"  # analytic


@pytest.mark.parametrize("run", RUNS)
def test_a_gpu_measures_at_the_claims_own_setting(run: str) -> None:
    on_gpu = Ask(quick=True, device=torch.device("cuda"), dtype="fp16")
    assert is_own(RUNS[run](on_gpu).case)
    case = RUNS[run](Ask(quick=True, device=CPU, dtype="fp32")).case
    assert not is_own(case)
    assert is_own(RUNS[run](on_gpu).case | {"dtype": "fp32"})


def test_memory_is_inputs_and_what_was_added() -> None:
    big, small = (replace_memory(original, added, 100) for original, added in ((SLOW, 300), (FAST, 100)))
    assert outcome(claim(memory_change("fast", "slow"), -0.5, shown="change"), rows(big, small)).measured == -0.5


def replace_memory(before: Row, added: int, inputs: int) -> Row:
    return row(
        before.implementation,
        1.0,
        memory=MemoryPeak(added_bytes=added, by="tensors"),
        extra={"input_bytes": inputs},
    )


@pytest.mark.parametrize(
    ("known_rows", "reason"),
    [
        ([], "not run"),
        ([FAST, row("slow")], "slow: OOM, no room"),
        ([FAST, row("slow", 1.0)], "cannot pair 1 samples with 3"),
    ],
)
def test_a_claim_without_figures_is_open(known_rows: list[Row], reason: str) -> None:
    result = outcome(claim(time_ratio("slow", "fast"), 3.0), rows(*known_rows))
    assert (result.verdict, result.measured) == ("n/a", None)
    assert result.reason.startswith(reason)


def test_a_refusal_is_an_answer_and_a_failure_is_none() -> None:
    refused, failed = (row("x", status=status, reason="why", measurement=None) for status in ("n/a", "FAILED"))
    statement = claim(runs("x"), 0.0, bound="at most", shown="yes")
    assert outcome(statement, rows(refused)).verdict == "holds"
    assert outcome(statement, rows(row("x", 1.0))).verdict == "does not"
    assert outcome(statement, rows(failed)).verdict == "n/a"


def test_analytic_claims_by_hand() -> None:
    outcomes_by_name = {
        name: outcome(BY_NAME[name], {})
        for name in ("GQA cache", "MQA cache", "MoE top-1", "MoE top-2", "standard 8192")
    }
    assert outcomes_by_name["GQA cache"].measured == pytest.approx(4 / 12 - 1)
    assert outcomes_by_name["MQA cache"].measured == pytest.approx(1 / 12 - 1)
    assert {name: result.verdict for name, result in outcomes_by_name.items()} == {
        "GQA cache": "holds",
        "MQA cache": "holds",
        "MoE top-1": "holds",
        "MoE top-2": "does not",
        "standard 8192": "holds",
    }
    # Mistral-7B with two feed-forwards instead of one, its other products and the scores of 2,048 tokens
    ffn, others = 32 * 3 * 4096 * 14336, 32 * (2 * 4096 + 2 * 1024) * 4096 + 32000 * 4096
    scores = 32 * 2 * 32 * 128 * 1024.5
    assert outcomes_by_name["MoE top-2"].measured == pytest.approx(
        (2 * ffn + others + scores) / (ffn + others + scores), rel=1e-3
    )
    # scores alone: 12 layers, 8 sequences, 12 heads, 8,192² of at least an fp32 softmax
    assert outcomes_by_name["standard 8192"].measured > 12 * 8 * 12 * 8192**2 * 4


def test_every_claim_has_a_source_and_a_value() -> None:
    assert len(BY_NAME) == len(CLAIMS) == len({claim.says for claim in CLAIMS})
    for statement in CLAIMS:
        assert statement.source
        assert statement.at
        assert (statement.value is None) == bool(statement.unavailable) == (statement.claimed is None)
        assert statement.run is None or statement.run in RUNS
    assert {statement.run for statement in CLAIMS} - {None} == set(RUNS)


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


def test_progressions_continue() -> None:
    tokens, targets = progressions(64, 5, 20, 3, CPU)
    strides = (targets - tokens) % 64
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert torch.equal(strides, strides[:, :1].expand(-1, 20))
    assert 1 <= int(strides.min()) <= int(strides.max()) <= 7


def test_the_cheap_runs_decide_their_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    """The verdicts on measured rows. The test of the command has the other runs."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    ask = Ask(quick=True, device=CPU, dtype="fp32")
    references = measure_references(CpuClock(), torch.float32, budget_s=0.01, sizes=Sizes(64, 2**16, 10))
    chosen = [RUNS[name](ask) for name in ("length", "decode 1", "norm forward", "style decode")]
    measured_rows = list(
        run([replace(group, pace=ask.pace) for group in chosen], clock=CpuClock(), references=references)
    )
    by_name = {result.claim.name: result for result in outcomes(measured_rows)}
    assert {by_name[f"{kind} length"].verdict for kind in ("learned", "RoPE", "ALiBi")} == {"holds"}
    assert by_name["RMSNorm forward"].verdict == "n/a here"
    samples = {
        timed_row.implementation: timed_row.measurement.samples_s
        for timed_row in measured_rows
        if timed_row.case["run"] == "norm forward" and timed_row.measurement is not None
    }
    pairs = zip(samples["LayerNorm"], samples["RMSNorm"], strict=True)
    assert by_name["RMSNorm forward"].measured == pytest.approx(median(layer / rms for layer, rms in pairs))
    assert by_name["flash 512"].verdict == "n/a"
    answer = summary(ask, measured_rows)
    assert answer.key == "claims"
    assert [line["claim"] for line in answer.rows] == [claim.name for claim in CLAIMS]
    assert len(answer.table.rows) == len(CLAIMS)
    assert "flash 512: n/a, not run" in answer.notes
    assert EXPERIMENT.summary is summary
