"""Random checks: the trials, their repetition, the search for smaller cases, and the layouts of tensors."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.kernels import launching
from llmbench.kernels.kernel import Draw
from llmbench.kernels.proof import fuzz as fuzzing
from llmbench.kernels.proof.fuzz import FuzzResult, fuzz, repeat, trials
from llmbench.kernels.proof.layouts import expanded, restrided
from llmbench.kernels.registry import KERNELS, load_kernel

FP32, BF16 = torch.float32, torch.bfloat16
pytestmark = pytest.mark.skipif(not launching.interpreted(), reason="the trials run in Triton's interpreter")


def test_a_seed_gives_the_same_trials() -> None:
    names = list(KERNELS)
    first, second, other = (list(islice(trials(names, [FP32, BF16], seed), 60)) for seed in (7, 7, 8))
    assert first == second
    assert first != other
    assert [trial.kernel for trial in first[: len(names)]] == names
    assert {trial.dtype for trial in first} == {FP32, BF16}


@pytest.mark.parametrize("name", KERNELS)
def test_the_inputs_of_random_cases_can_be_made(name: str) -> None:
    kernel = load_kernel(name)
    for seed in range(40):
        random = fuzzing.Random(seed, kernel.dtypes[0], torch.device("cpu"))
        assert kernel.inputs(kernel.random_case(Draw(seed)), random)


def test_a_run_ends_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(fuzzing.time, "monotonic", lambda: next(clock))
    items = list(fuzz(["rope"], [FP32], seconds=4, seed=0, device="cpu"))
    (result,) = (item for item in items if isinstance(item, FuzzResult))
    assert (result.trials, result.passed, len(items)) == (4, True, 5)


def off_by_one_row(gate: Tensor, up: Tensor, activation: str = "silu") -> Tensor:
    """A gated activation whose last row is wrong if there are more than two rows."""
    out = load_kernel("glu").reference(gate, up, activation)
    assert isinstance(out, Tensor)
    return out if len(out) < 3 else torch.cat((out[:-1], 2 * out[-1:]))


@pytest.fixture
def wrong_glu(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(load_kernel("glu"), run=off_by_one_row)
    monkeypatch.setattr(fuzzing, "load_kernel", lambda name: wrong)


@pytest.mark.usefixtures("wrong_glu")
def test_a_failure_can_be_repeated_and_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(fuzzing.time, "monotonic", lambda: next(clock) / 10)
    result = next(item for item in fuzz(["glu"], [FP32], 2, 0, "cpu") if isinstance(item, FuzzResult))
    assert not result.passed
    failure = result.failures[0]
    for trial in (failure.trial, failure.smaller):
        assert trial is not None
        verdicts = eval(trial.expression, {"repeat": repeat})
        assert not all(verdict.passed for verdict in verdicts)
    assert failure.smaller is not None
    assert failure.smaller.case.rows == 3
    assert failure.smaller.case.width <= 2
    assert " has the error " in failure.reason


def test_an_error_of_an_op_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(**_: Any) -> Tensor:
        raise IndexError("out of range")

    monkeypatch.setattr(fuzzing, "load_kernel", lambda name: replace(load_kernel("glu"), run=raises))
    monkeypatch.setattr(fuzzing, "SMALLER_S", 0.0)
    result = next(item for item in fuzz(["glu"], [FP32], 0.1, 0, "cpu") if isinstance(item, FuzzResult))
    assert not result.passed
    assert result.failures[0].reason == "IndexError in raises: out of range"


# Layouts


def test_a_layout_keeps_the_values_and_surrounds_them_with_nan() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    layouts = [restrided(x, Draw(seed)) for seed in range(40)]
    assert all(torch.equal(layout, x) for layout in layouts)
    assert len({layout.stride() for layout in layouts}) > 20
    assert any(layout.storage_offset() for layout in layouts)
    for layout in layouts:
        memory = torch.tensor([], dtype=x.dtype).set_(layout.untyped_storage())
        assert int(memory.isfinite().sum()) == x.numel()
    assert all(restrided(x, Draw(seed), unit_stride=True).stride(-1) == 1 for seed in range(20))
    integers = restrided(torch.tensor([5, 7]), Draw(3))
    assert integers.tolist() == [5, 7]


def test_an_expanded_tensor_has_a_stride_of_0() -> None:
    x = torch.arange(24.0).view(2, 3, 4)
    strides = {expanded(x, Draw(seed)).stride() for seed in range(20)}
    assert strides == {(0, 4, 1), (12, 0, 1)}
    unused = x.clone()
    unused[1, 2, 0] = torch.nan
    assert expanded(unused, Draw(0)) is unused


def test_sinks_slopes_and_starts_may_have_any_stride() -> None:
    """A kernel that takes their strides as 1 would read the NaN or the -1 between their values."""
    kernel = load_kernel("attention")
    case = type(kernel.cases[0])(heads=2, head_dim=16, alibi=True, sinks=True, packed=((3, 5), (4, 4)))
    inputs = kernel.inputs(case, fuzzing.Random(0, FP32, torch.device("cpu")))
    for name in ("sinks", "slopes", "query_starts", "key_starts"):
        wide = torch.full((2 * len(inputs[name]),), -1, dtype=inputs[name].dtype)
        wide[::2] = inputs[name]
        inputs[name] = wide[::2]
    for result, expected in zip(kernel.run(**inputs), kernel.reference(**inputs), strict=True):
        torch.testing.assert_close(result, expected)
