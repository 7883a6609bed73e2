"""RMSNorm: x / √(mean(x²) + ε) · weight, with and without a residual added first. Maths and kernels: `norms`."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random
from llmbench.kernels.norm import norm as norms

__all__ = ["KERNEL", "Case", "add_rms_norm", "cost", "inputs", "reference", "rms_norm"]


def rms_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-6, unit_offset: bool = False
) -> Tensor:
    """The normed x [..., W], contiguous. weight and bias [W], or [N, W] for x [..., N, W]; with `unit_offset` it is
    1 + weight that multiplies. Raises ValueError for shapes and formats that do not fit."""
    norms.refuse(x, None, weight, bias)
    return norms.norm(x, weight, bias, eps, unit_offset, False)[0]


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-6,
    unit_offset: bool = False,
) -> tuple[Tensor, Tensor]:
    """summed = x + residual, normed, and summed itself, which the next layer adds to."""
    norms.refuse(x, residual, weight, bias)
    out, summed, _ = norms.add_norm(x, residual, weight, bias, eps, unit_offset, False)
    return out, summed


def _run(residual: Tensor | None = None, **others: Any) -> Tensor | tuple[Tensor, Tensor]:
    return rms_norm(**others) if residual is None else add_rms_norm(residual=residual, **others)


reference = partial(norms.reference, eps=1e-6, centred=False)


class Case(NamedTuple):
    """x is [rows, heads, width], or [rows, width] for 0 heads. `weights`: of them "w" a weight, "b" a bias, "h" both
    per head, "o" an offset of one, "f" weights in fp32. `sliced`: x is a slice of wider rows."""

    rows: int
    width: int
    weights: str = "w"
    residual: bool = False
    heads: int = 0
    sliced: bool = False


def inputs(case: Case, random: Random) -> Inputs:
    """x with a mean and with rows of different size, a small residual, weights near one."""
    shape = (case.rows, case.heads, case.width) if case.heads else (case.rows, case.width)
    x = random.normal(*shape[:-2], shape[-2] + 2 * case.sliced, case.width, scale=2.0)[..., : shape[-2], :]
    dtype = torch.float32 if "f" in case.weights else None
    parts = shape[1:] if "h" in case.weights else shape[-1:]
    made: Inputs = {"x": x, "unit_offset": "o" in case.weights}
    if case.residual:
        made["residual"] = random.normal(*shape)
    for letter, name in (("w", "weight"), ("b", "bias")):
        if letter in case.weights:
            made[name] = random.normal(*parts, dtype=dtype)
    return made


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """No matrix product. Forward reads x and the weights and writes out; a residual is one read and one write more.
    Backward reads dout and x, writes dx, and dsummed comes in with a residual."""
    count = case.rows * max(1, case.heads) * case.width
    parts = case.width * (case.heads if "h" in case.weights else 1)
    parts *= 4 if "f" in case.weights else dtype.itemsize
    weight, bias = parts * ("w" in case.weights), parts * ("b" in case.weights)
    forward = (2 + 2 * case.residual) * count * dtype.itemsize + weight + bias
    backward = (3 + case.residual) * count * dtype.itemsize + 2 * weight + bias
    return Cost(flops=0, bytes=forward, backward_bytes=backward)


KERNEL = Kernel(
    name="rms_norm",
    summary="RMSNorm over the last dimension, with and without a residual added first",
    run=_run,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case(5, 37, "w", residual=True),
        Case(7, 130, "wo"),
        Case(3, 3, ""),
        Case(2, 300, "wbf", residual=True),
        Case(37, 64, "w", heads=3, sliced=True),
        Case(9, 24, "whf", heads=5, sliced=True),
        Case(5, 1000, "b", residual=True, heads=2, sliced=True),
    ],
    shapes=[
        Case(16384, 4096, "w"),
        Case(16384, 4096, "w", residual=True),
        Case(16384, 128, "w", heads=32),
        Case(8192, 16384, "w", residual=True),
    ],
    differentiable=("x", "residual", "weight", "bias"),
)
