"""Training steps: rows with their figures, the peak that `memory` predicts, and faults that the check finds."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from llmbench.bench.experiments import train
from llmbench.bench.experiments.experiment import Ask, run
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.experiments.train import derived, flops_of, group_of, memory_of
from llmbench.bench.experiments.train import step as training
from llmbench.bench.experiments.train.step import Trainer, TrainStep, verdicts
from llmbench.bench.pieces.piece import Setting
from llmbench.bench.results.metrics import MachineLimits
from llmbench.errors import LLMBenchError, UnsupportedError
from llmbench.measure.clock import CpuClock
from llmbench.measure.ranks import Ranks
from llmbench.measure.reference import Limits, ReferenceMeasurements, Sizes, measure_references
from llmbench.measure.results import Row
from llmbench.model import build
from llmbench.model.implementations import implementation
from llmbench.sizing.params import count_parameters
from llmbench.spec.ffn import Gated, MoE
from llmbench.spec.model import Norm
from llmbench.spec.position import LearnedPositions

CPU = torch.device("cpu")
SPEC = model_of(
    "tiny",
    32,
    mixer=heads(4, 4, 8),
    ffn=Gated(intermediate_size=48),
    # LayerNorm without RoPE saves the same tensors on a CPU as on a GPU. There RMSNorm is several ops, which save more.
    # RoPE changes the layout of the queries; the flash kernel's output has their layout, and o_proj saves a copy of it.
    norm=Norm(kind="layernorm", bias=True),
    positions=LearnedPositions(num_positions=48),
    layers=3,
    vocab=97,
)
SETTING = Setting(spec=SPEC, batch=4, seq_len=48, dtype="fp32", device=CPU, direction="both")
STEPS = [TrainStep("standard"), TrainStep("sdpa"), TrainStep("flash"), TrainStep("sdpa", recompute=True)]


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flash` is torch's kernel for CPUs, as it is for users."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.fixture(scope="module")
def references() -> ReferenceMeasurements:
    return measure_references(CpuClock(), torch.float32, budget_s=0.01, sizes=Sizes(64, 2**16, 10))


@pytest.fixture(scope="module")
def rows(references: ReferenceMeasurements) -> dict[str, Row]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("TRITON_INTERPRET", raising=False)
        ask = Ask(quick=True, device=CPU, dtype="fp32")
        return {
            row.implementation: row
            for row in run([group_of(SETTING, STEPS, ask)], clock=CpuClock(), references=references)
        }


def test_every_step_is_correct_and_timed(rows: dict[str, Row]) -> None:
    assert {name: (row.status, [check.tensor for check in row.checks]) for name, row in rows.items()} == {
        step.name: ("ok", ["loss", "gradients"]) for step in STEPS
    }


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_the_peak_is_that_of_memory(rows: dict[str, Row], step: TrainStep) -> None:
    row = rows[step.name]
    assert row.memory is not None
    resident = row.extra["input_bytes"]
    assert resident == 3 * 4 * count_parameters(SPEC).total + 4 * len(list(build(SPEC).parameters()))  # and step counts
    assert resident + row.memory.added_bytes == pytest.approx(row.need_bytes, rel=0.03)


def test_recomputing_saves_memory_for_flops(rows: dict[str, Row]) -> None:
    plain, again = rows["sdpa"], rows["sdpa recompute"]
    assert plain.memory is not None
    assert again.memory is not None
    assert again.memory.added_bytes < 0.7 * plain.memory.added_bytes
    assert again.work_flops == plain.work_flops
    forward = (
        flops_of(SETTING, TrainStep("sdpa")).total // 3
    )  # the backward pass has two products for each forward product
    head = 2 * 4 * 48 * SPEC.vocab_size * SPEC.hidden_size
    assert again.extra["hardware_flops"] - plain.extra["hardware_flops"] == forward - head


def test_mfu_uses_the_datasheet_where_there_is_one(rows: dict[str, Row], references: ReferenceMeasurements) -> None:
    row = rows["sdpa recompute"]
    assert row.seconds is not None
    assert row.work_flops is not None
    known = derived(row, MachineLimits(references, Limits(1e12, 1e11)))
    assert known["mfu"] == pytest.approx(row.work_flops / (row.seconds * 1e12))
    assert known["hfu"] == pytest.approx(row.extra["hardware_flops"] / (row.seconds * 1e12))
    here = derived(row, MachineLimits(references, None))
    assert here["mfu"] == pytest.approx(row.flops_per_s / references.matmul.per_s)


def test_a_step_changes_no_weight_and_leaves_no_gradient() -> None:
    model = build(SPEC)
    before = [parameter.clone() for parameter in model.parameters()]
    tokens = SETTING.tokens(97, 4, 48)
    step = Trainer(model, tokens, tokens).call(TrainStep("sdpa"))
    for _ in range(2):
        step()
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_compiled_and_recomputed_steps_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph that torch.compile captures, without the minutes of generating kernels."""
    monkeypatch.setattr(training.torch, "compile", partial(torch.compile, backend="aot_eager"))
    for step in (TrainStep("sdpa", compiled=True), TrainStep("sdpa", recompute=True, compiled=True)):
        assert [verdict.passed for verdict in verdicts(SETTING, step)] == [True, True]


def test_what_is_compiled_stays_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates share a model and take turns. torch.compile must not treat it as a new model each time; after a few it
    would stop compiling and run it eager."""
    monkeypatch.setattr(training.torch, "compile", partial(torch.compile, backend="aot_eager"))
    tokens = SETTING.tokens(97, 4, 48)
    trainer = Trainer(build(SPEC), tokens, tokens)
    steps = [trainer.call(TrainStep("sdpa", again, compiled)) for again in (False, True) for compiled in (False, True)]
    compilations: list[int] = []
    for _ in range(4):
        for step in steps:
            step()
        compilations.append(counters["stats"]["unique_graphs"])
    assert compilations[0] > 0
    assert len(set(compilations)) == 1


def test_a_wrong_backward_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0] * 0.999

    sdpa = implementation("sdpa")
    wrong = sdpa._replace(attend=lambda q, seen, scores: Halved.apply(sdpa.attend(q, seen, scores)))
    monkeypatch.setattr(training, "implementation", lambda name: wrong if name == "sdpa" else implementation(name))
    assert [verdict.passed for verdict in verdicts(SETTING, TrainStep("sdpa"))] == [True, False]


def test_oom_is_a_row_with_its_need(references: ReferenceMeasurements) -> None:
    huge = SETTING.changed(batch=10**7)
    ask = Ask(quick=True, device=CPU, dtype="fp32")
    (row,) = run([group_of(huge, [TrainStep("sdpa")], ask)], clock=CpuClock(), references=references)
    assert row.status == "OOM"
    memory = memory_of(huge, TrainStep("sdpa"), 1)
    assert row.need_bytes == memory.peak_bytes - memory.parts_bytes["overhead"]


def test_experts_that_the_ranks_cannot_divide_are_refused_in_their_row_only(references: ReferenceMeasurements) -> None:
    """Three ranks of which only this one exists: the refusal comes before any of them communicates."""
    ffn = MoE(num_experts=4, num_experts_per_tok=2, intermediate_size=16)
    spec = model_of("experts", 32, mixer=heads(4, 2, 8), ffn=ffn, layers=1, vocab=98)
    ask = Ask(quick=True, device=CPU, dtype="fp32", ranks=Ranks(size=3))
    names = [step.name for step in train.steps(ask, spec)]
    assert names == ["sdpa FSDP", "sdpa FSDP recompute", "sdpa EP"]
    setting = SETTING.changed(spec=spec, batch=3)
    *possible, refused = group_of(setting, train.steps(ask, spec), ask).candidates(references)
    assert all(candidate.need_bytes for candidate in possible)
    with pytest.raises(UnsupportedError, match="4 experts are not divisible by 3"):
        refused.prepare()


def test_fp16_is_refused() -> None:
    with pytest.raises(LLMBenchError, match="fp16 needs loss scaling"):
        train.groups(Ask(quick=True, device=CPU, dtype="fp16"))
