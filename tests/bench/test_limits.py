"""One limit a row, and what is said where it is beaten."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest
import torch

from llmbench.bench.candidates import Entry, entry_group
from llmbench.bench.experiments import generate
from llmbench.bench.experiments.experiment import Ask
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.pointwise import ADD_NORM
from llmbench.bench.results.metrics import Yardsticks, figures
from llmbench.cli.measured import machine
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.environment import environment
from llmbench.measure.measurement import Measurement
from llmbench.measure.results import Row
from llmbench.sizing.work import Pass
from llmbench.spec.ffn import Gated
from tests.bench.test_pieces import references, setting
from tests.measure.rows import timed

CPU = torch.device("cpu")
YARDSTICKS = Yardsticks(references(), None)


def row_of(rival: Candidate, seconds: float, *, cold: bool = False) -> Row:
    """As if it had been timed."""
    return Row(
        experiment="x",
        case={},
        implementation=rival.name,
        status="ok",
        measurement=Measurement(samples_s=(seconds,), clock="cpu", cold=cold),
        work_flops=rival.work_flops,
        work_bytes=rival.work_bytes,
        predicted_s=rival.predicted_s,
        extra=dict(rival.extra),
    )


@pytest.mark.parametrize("name", ["attention", "norm", "decode", "mla"])
def test_a_single_op_at_its_prediction_is_at_its_limit(name: str) -> None:
    """Whatever its bytes are held against: `of limit` and `predicted` are of one roofline."""
    of = find_piece(name)
    entry = Entry(label="flash", piece=of, setting=setting(of), impl="flash")
    (rival,) = entry_group(
        [entry], experiment="x", case={}, pace=Ask(quick=True, device=CPU, dtype="fp32").pace
    ).rivals(references())
    assert rival.predicted_s is not None
    assert rival.extra["bandwidth"] == ("read" if name in ("decode", "mla") else "copy")
    found = figures(row_of(rival, rival.predicted_s), YARDSTICKS)
    assert (found.of_anchor, found.off) == (pytest.approx(1.0), pytest.approx(0.0))


@pytest.mark.parametrize("passed", ["forward", "backward", "both"])
def test_a_sum_and_its_norm_in_one_kernel_are_predicted_as_one(passed: Pass) -> None:
    """Four tensors move in either pass, at 100 GB/s; one op after the other moves five, then six."""
    at = setting(ADD_NORM, of=passed)
    tensor, weight = 4 * 2 * 24 * 64, 4 * 64
    passes = {"forward": (1,), "backward": (2,), "both": (1, 2)}[passed]
    limits = references().limits()
    fused = sum(4 * tensor + weights * weight for weights in passes) / 1e11
    assert ADD_NORM.predicted_s(at, "fused", limits) == pytest.approx(fused)
    apart = sum((4 + each) * tensor + each * weight for each in passes) / 1e11
    assert ADD_NORM.predicted_s(at, "standard", limits) == pytest.approx(apart)


@pytest.mark.parametrize(("phase", "bandwidth"), [("first token", "copy"), ("next token", "read"), ("answer", "read")])
def test_the_bytes_of_steps_are_read(phase: Any, bandwidth: str) -> None:
    spec = model_of("x", 64, mixer=heads(2, 1, 32), ffn=Gated(intermediate_size=96), layers=2)
    case = generate.Case(spec=spec, dtype="fp32", device=CPU, phase=phase, batch=2, context=16, new_tokens=1)
    rival = generate.rival("sdpa", "sdpa", False, generate.Shared(case), references(), generate.Checks())
    assert rival.extra["bandwidth"] == bandwidth
    assert rival.work_bytes is not None
    row = row_of(replace(rival, work_flops=0), 1.0)  # bytes alone
    assert figures(row, YARDSTICKS).of_anchor == pytest.approx(
        rival.work_bytes / {"copy": 1e11, "read": 5e10}[bandwidth]
    )


@pytest.mark.parametrize(
    ("flops", "seconds", "cold", "said"),
    [
        (0, 0.5e-3, False, "a cache"),  # twice as fast as a copy of its bytes
        (0, 2e-3, False, None),
        (0, 0.5e-3, True, "the machine"),  # its caches were emptied: not they
        (2 * 10**9, 1.5e-3, False, "the machine"),  # bound by products
        (2 * 10**9, 2.5e-3, False, None),
    ],
)
def test_it_is_said_what_beat_a_limit(flops: int, seconds: float, cold: bool, said: str | None) -> None:
    rival = Candidate(name="a", prepare=lambda: lambda: None, work_flops=flops, work_bytes=10**8)
    row = row_of(rival, seconds, cold=cold)
    assert YARDSTICKS.beaten_by(row) == said
    lines = machine(environment(CPU), YARDSTICKS, [row])
    assert any("stay in a cache" in line for line in lines) == (said == "a cache")
    assert any("by no cache" in line for line in lines) == (said == "the machine")


def test_limits_that_were_disturbed_say_so() -> None:
    """What held the reference measurements up makes every share of them too high."""
    quiet = references()
    assert not any("limits of" in line for line in machine(environment(CPU), Yardsticks(quiet, None)))
    held = msgspec.structs.replace(
        quiet,
        matmul=msgspec.structs.replace(quiet.matmul, measurement=timed(1e-3, run_queue_share=0.5)),
        copy=msgspec.structs.replace(quiet.copy, measurement=timed(1e-2, run_queue_share=0.25)),
    )
    assert "limits of products, copying: CPU contention" in machine(environment(CPU), Yardsticks(held, None))


def test_what_has_no_time_beats_nothing() -> None:
    lost = Row(experiment="x", case={}, implementation="a", status="OOM", reason="no room", work_bytes=1)
    assert YARDSTICKS.beaten_by(lost) is None
