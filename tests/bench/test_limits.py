"""The limit of each row, and the lines that explain rows above it."""

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
from llmbench.bench.extra_candidates import traits_of
from llmbench.bench.pieces import find_piece
from llmbench.bench.pieces.pointwise import ADD_NORM
from llmbench.bench.results.metrics import Line, MachineLimits
from llmbench.cli.measured import machine_notes
from llmbench.measure.check_and_time import Candidate
from llmbench.measure.measurement import Measurement
from llmbench.measure.results import Row
from llmbench.sizing.work import Pass
from llmbench.spec.ffn import Gated
from tests.bench.test_pieces import references, setting
from tests.measure.rows import timed

CPU = torch.device("cpu")
LIMITS = MachineLimits(references(), None)


def row_of(candidate: Candidate, seconds: float, *, cold: bool = False) -> Row:
    """A row of the candidate as if it had been timed."""
    return Row(
        experiment="x",
        case={},
        implementation=candidate.name,
        status="ok",
        measurement=Measurement(samples_s=(seconds,), clock="cpu", cold=cold),
        work_flops=candidate.work_flops,
        work_bytes=candidate.work_bytes,
        predicted_s=candidate.predicted_s,
        extra=dict(candidate.extra),
    )


@pytest.mark.parametrize("name", ["attention", "norm", "decode", "mla"])
def test_a_single_op_at_its_prediction_is_at_its_limit(name: str) -> None:
    """`share of limit` and `predicted` use the same roofline, whichever rate limits the bytes."""
    piece = find_piece(name)
    entry = Entry(label="flash", piece=piece, setting=setting(piece), impl="flash")
    (candidate,) = entry_group([entry], case={}, pace=Ask(quick=True, device=CPU, dtype="fp32").pace).candidates(
        references()
    )
    assert candidate.predicted_s is not None
    assert candidate.extra["bandwidth"] == ("read" if name in ("decode", "mla") else "copy")
    values = Line(row_of(candidate, candidate.predicted_s), LIMITS)
    assert (values.share_of_limit, values.prediction_error) == (pytest.approx(1.0), pytest.approx(0.0))


@pytest.mark.parametrize("passed", ["forward", "backward", "both"])
def test_a_sum_and_its_norm_in_one_kernel_are_predicted_as_one(passed: Pass) -> None:
    """Four tensors move in each pass, at 100 GB/s. As single ops they move five, then six."""
    at = setting(ADD_NORM, direction=passed)
    tensor, weight = 4 * 2 * 24 * 64, 4 * 64
    passes = {"forward": (1,), "backward": (2,), "both": (1, 2)}[passed]
    limits = references().limits()
    fused = sum(4 * tensor + weights * weight for weights in passes) / 1e11
    assert ADD_NORM.predicted_s(at, traits_of("fused"), limits) == pytest.approx(fused)
    apart = sum((4 + backward) * tensor + backward * weight for backward in passes) / 1e11
    assert ADD_NORM.predicted_s(at, traits_of("standard"), limits) == pytest.approx(apart)


@pytest.mark.parametrize(("phase", "bandwidth"), [("first token", "copy"), ("next token", "read"), ("answer", "read")])
def test_the_bytes_of_steps_are_read(phase: Any, bandwidth: str) -> None:
    spec = model_of("x", 64, mixer=heads(2, 1, 32), ffn=Gated(intermediate_size=96), layers=2)
    case = generate.Case(spec=spec, dtype="fp32", device=CPU, phase=phase, batch=2, context=16, new_tokens=1)
    candidate = generate.candidate("sdpa", "sdpa", False, generate.Shared(case), references(), generate.Checks())
    assert candidate.extra["bandwidth"] == bandwidth
    assert candidate.work_bytes is not None
    row = row_of(replace(candidate, work_flops=0), 1.0)  # bytes alone
    assert Line(row, LIMITS).share_of_limit == pytest.approx(
        candidate.work_bytes / {"copy": 1e11, "read": 5e10}[bandwidth]
    )


@pytest.mark.parametrize(
    ("flops", "seconds", "cold", "said"),
    [
        (0, 0.5e-3, False, "a cache"),  # twice as fast as a copy of its bytes
        (0, 2e-3, False, None),
        (0, 0.5e-3, True, "the machine"),  # the caches were emptied, so that they are not the reason
        (2 * 10**9, 1.5e-3, False, "the machine"),  # limited by products
        (2 * 10**9, 2.5e-3, False, None),
    ],
)
def test_a_line_says_why_a_row_exceeds_its_limit(flops: int, seconds: float, cold: bool, said: str | None) -> None:
    candidate = Candidate(name="a", prepare=lambda: lambda: None, work_flops=flops, work_bytes=10**8)
    row = row_of(candidate, seconds, cold=cold)
    assert LIMITS.exceeded_by(row) == said
    lines = machine_notes(LIMITS, [row])
    assert any("stayed in a cache" in line for line in lines) == (said == "a cache")
    assert any("the machine was slower when" in line for line in lines) == (said == "the machine")


def test_disturbed_reference_measurements_are_reported() -> None:
    """A disturbed reference measurement makes every share of the limit too high."""
    quiet = references()
    assert not any("measurement of" in line for line in machine_notes(MachineLimits(quiet, None), []))
    disturbed = msgspec.structs.replace(
        quiet,
        matmul=msgspec.structs.replace(quiet.matmul, measurement=timed(1e-3, run_queue_share=0.5)),
        copy=msgspec.structs.replace(quiet.copy, measurement=timed(1e-2, run_queue_share=0.25)),
    )
    notes = machine_notes(MachineLimits(disturbed, None), [])
    assert notes == ["reference measurement of matrix product, copy: CPU contention"]


def test_a_row_without_a_time_exceeds_nothing() -> None:
    lost = Row(experiment="x", case={}, implementation="a", status="OOM", reason="no room", work_bytes=1)
    assert LIMITS.exceeded_by(lost) is None
