"""`llmbench kernels bench` on planted kernels: a registered kernel is timed at once, and a wrong one is found."""

from __future__ import annotations

import json
import sys
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from llmbench.bench import kernels as bench_kernels  # noqa: E402
from llmbench.cli import run  # noqa: E402
from llmbench.kernels import registry  # noqa: E402
from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random  # noqa: E402
from llmbench.kernels.launching import Config, empty, launch  # noqa: E402

Capture = pytest.CaptureFixture[str]


@triton.jit
def add_scaled(x, residual, out, scale, size, BLOCK: tl.constexpr):  # noqa: N803
    """A program: BLOCK elements of x · scale + residual."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < size
    scaled = tl.load(x + place, mask=inside).to(tl.float32) * scale
    total = scaled + tl.load(residual + place, mask=inside).to(tl.float32)
    tl.store(out + place, total.to(out.dtype.element_ty), mask=inside)


def scaled_residual(x: Tensor, residual: Tensor, scale: float) -> Tensor:
    """x · scale + residual, in one launch."""
    out = empty(*x.shape, like=x)
    config = Config(BLOCK=64, num_warps=1)
    launch(add_scaled, (triton.cdiv(x.numel(), 64),), config, x, residual, out, scale, x.numel())
    return out


def reference(x: Tensor, residual: Tensor, scale: float) -> Tensor:
    """The same in plain torch."""
    return x * scale + residual


class Case(NamedTuple):
    """Rows and their width."""

    rows: int
    width: int


def inputs(case: Case, random: Random) -> Inputs:
    """x, the residual stream, and the scale."""
    x, residual = (random.normal(case.rows, case.width) for _ in range(2))
    return {"x": x, "residual": residual, "scale": 0.5}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """No matrix product. Two tensors are read, one is written."""
    return Cost(flops=0, bytes=3 * case.rows * case.width * dtype.itemsize)


def plant(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Register the kernel `scaled_residual`, with some fields changed."""
    fields = {"run": scaled_residual, "reference": reference, "inputs": inputs, "cost": cost} | changes
    module = ModuleType("llmbench.kernels.planted")
    module.KERNEL = Kernel(  # type: ignore[attr-defined]
        name="scaled_residual",
        summary="x · scale + residual",
        cases=[Case(3, 37)],
        random_case=lambda draw: Case(3, draw.size(99)),
        shapes=[Case(16, 256)],
        **fields,
    )
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry.KERNELS, "scaled_residual", "planted:KERNEL")
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def answer(capsys: Capture, *arguments: str, code: int = 0) -> dict[str, Any]:
    """The JSON of `llmbench kernels bench` for the planted kernel."""
    assert run(["kernels", "bench", "scaled_residual", "--device", "cpu", "--format", "json", *arguments]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_registered_kernel_is_timed(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own case, cost and reference are all that the command needs."""
    plant(monkeypatch)
    document = answer(capsys, "--dtype", "fp32,bf16")
    assert document["schema"] == "llmbench.kernels.bench/1"
    assert set(document["reference_measurements"]) == {"fp32", "bf16"}
    rows = document["rows"]
    assert [(row["case"]["dtype"], row["implementation"]) for row in rows] == [
        (dtype, name) for dtype in ("fp32", "bf16") for name in (bench_kernels.KERNEL, bench_kernels.REFERENCE)
    ]
    kernel, plain = rows[:2]
    assert (kernel["status"], plain["status"]) == ("ok", "ok")
    assert kernel["case"]["shape"] == "rows=3, width=37"  # the small case, not the shape
    assert kernel["work_bytes"] == 3 * 4 * 3 * 37
    assert [check["passed"] for check in kernel["checks"]] == [True]
    assert kernel["derived"]["predicted_s"] > 0
    assert kernel["derived"]["share_of_limit"] == pytest.approx(
        kernel["derived"]["predicted_s"] / kernel["derived"]["seconds"]
    )
    assert kernel["derived"]["speedup"] < 1  # in the interpreter
    assert plain["derived"]["speedup"] == 1


def test_a_table_says_that_a_rehearsal_measures_nothing(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert run(["kernels", "bench", "scaled_residual", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(
        "This is a test run in Triton's interpreter, with one small case per kernel. The times have no"
    )
    assert "speed-up vs reference" in out


def test_a_wrong_kernel_has_no_time(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(x: Tensor, residual: Tensor, scale: float) -> Tensor:
        return scaled_residual(x, residual, scale * 1.1)

    plant(monkeypatch, run=wrong)
    kernel, plain = answer(capsys, code=1)["rows"]
    assert (kernel["status"], kernel["measurement"]) == ("INCORRECT", None)
    assert plain["status"] == "ok"


def test_a_kernel_without_a_backward_pass_is_na(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    rows = answer(capsys, "--pass", "both")["rows"]
    assert [row["status"] for row in rows] == ["n/a", "n/a"]
    assert rows[0]["reason"] == "scaled_residual has no backward pass"


def test_a_reference_that_does_not_fit_is_checked_in_small_cases(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = bench_kernels._verdicts
    calls = iter([True])

    def without_room(*arguments: Any, **options: Any) -> Any:
        if next(calls, False):
            raise torch.OutOfMemoryError("no room")
        return whole(*arguments, **options)

    plant(monkeypatch)
    monkeypatch.setattr(bench_kernels, "_verdicts", without_room)
    kernel, _ = answer(capsys)["rows"]
    assert (kernel["status"], kernel["extra"]["checked"]) == ("ok", "in small cases")


def test_without_a_gpu_only_a_rehearsal_runs(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(["kernels", "bench", "scaled_residual"]) == 3
    assert "needs a GPU" in capsys.readouterr().err
