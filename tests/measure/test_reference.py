"""Reference measurements, and the rooflines from them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from llmbench.measure import reference
from llmbench.measure.clock import CpuClock, clock_for
from llmbench.measure.cpu import SIDE
from llmbench.measure.reference import Limits, Sizes, datasheet_limits, measure_references
from llmbench.spec.catalog import load_device
from tests.measure.rows import references


def test_reference_measurements_of_this_machine() -> None:
    sizes = Sizes(matmul=128, bytes=2**20, launches=50)
    rates = measure_references(CpuClock(threads=1), torch.float32, budget_s=0.02, sizes=sizes)
    assert rates.matmul.description == "float32 128×128×128 product"
    assert rates.matmul.work == 2 * 128**3
    assert (rates.copy.work, rates.read.work, rates.launch.work) == (2 * 2**20, 2**20, 50)
    assert rates.copy.description == "copy of 1 MiB, read and written"
    assert 1e-8 < rates.launch.unit_s < 1e-2
    for measured in (rates.matmul, rates.copy, rates.read):
        assert measured.per_s > 1e6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_product_is_computed_in_the_given_format(dtype: torch.dtype) -> None:
    """torch's own dispatcher shows the operands; the description is not trusted."""
    operands = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.mm.default:
                operands.append((args[0].dtype, tuple(args[0].shape), tuple(args[1].shape)))
            return func(*args, **(kwargs or {}))

    with Products():
        measured = measure_references(CpuClock(threads=1), dtype, budget_s=0.0, sizes=Sizes(48, 2**10, 2))
    operands = [operand for operand in operands if operand[1] != (SIDE, SIDE)]  # the clock's products of threads
    assert set(operands) == {(dtype, (48, 48), (48, 48))}
    assert measured.matmul.description == f"{dtype} 48×48×48 product".removeprefix("torch.")


@pytest.mark.parametrize(("dtype", "n"), [(torch.bfloat16, 128), (torch.float32, 512)])
def test_a_slow_product_is_made_smaller(dtype: torch.dtype, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Except in fp32: runs are compared by that product, and a busy machine must not change its size."""
    monkeypatch.setattr(reference, "LONGEST_S", 0.0)  # every time is too long
    product = measure_references(CpuClock(threads=1), dtype, budget_s=0.0, sizes=Sizes(512, 2**10, 2)).matmul
    assert (product.description, product.work) == (f"{dtype} {n}×{n}×{n} product".removeprefix("torch."), 2 * n**3)


def test_rates_and_rooflines() -> None:
    measured = references()
    assert (measured.matmul.per_s, measured.launch.unit_s) == pytest.approx((1e12, 5e-6))
    assert measured.limits() == pytest.approx((1e12, 1e11))
    assert measured.limits("read") == pytest.approx((1e12, 5e10))
    roofline = Limits(flops_per_s=100.0, bytes_per_s=10.0)
    assert (roofline.least_s(1000, 1), roofline.least_s(1, 1000), roofline.least_s(0, 5)) == (10.0, 100.0, 0.5)


def test_a_datasheet_with_both_rates_gives_a_roofline() -> None:
    assert datasheet_limits(load_device("h200"), "bf16") == (989.5e12, 4.8e12)
    assert datasheet_limits(load_device("a100-80gb-sxm"), "fp8") is None


@pytest.mark.gpu
def test_reference_measurements_of_a_gpu() -> None:
    measured = measure_references(clock_for(torch.device("cuda")), torch.bfloat16, budget_s=0.1)
    assert measured.matmul.per_s > 1e13
    assert measured.copy.per_s > 1e11
    assert measured.read.per_s > 1e11
    assert 1e-7 < measured.launch.unit_s < 1e-4
