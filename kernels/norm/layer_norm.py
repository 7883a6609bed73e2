"""LayerNorm: (x − mean(x)) / √(var(x) + ε) · weight + bias, with and without a residual added first. Maths and
kernels: `norms`."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from llmbench.kernels.kernel import Kernel
from llmbench.kernels.norm import norm as norms
from llmbench.kernels.norm.rms_norm import Case, cost, inputs

__all__ = ["KERNEL", "add_layer_norm", "layer_norm", "reference"]


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5, unit_offset: bool = False
) -> Tensor:
    """The normed x [..., W], contiguous. weight and bias [W], or [N, W] for x [..., N, W]; with `unit_offset` it is
    1 + weight that multiplies. Raises ValueError for shapes and formats that do not fit."""
    norms.refuse(x, None, weight, bias)
    return norms.norm(x, weight, bias, eps, unit_offset, True)[0]


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    unit_offset: bool = False,
) -> tuple[Tensor, Tensor]:
    """summed = x + residual, normed, and summed itself, which the next layer adds to."""
    norms.refuse(x, residual, weight, bias)
    out, summed, _ = norms.add_norm(x, residual, weight, bias, eps, unit_offset, True)
    return out, summed


def _run(residual: Tensor | None = None, **others: Any) -> Tensor | tuple[Tensor, Tensor]:
    return layer_norm(**others) if residual is None else add_layer_norm(residual=residual, **others)


reference = partial(norms.reference, eps=1e-5, centred=True)


KERNEL = Kernel(
    name="layer_norm",
    summary="LayerNorm over the last dimension, with and without a residual added first",
    run=_run,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case(5, 37, "wb"),
        Case(7, 130, "wo", residual=True),
        Case(4, 5, ""),
        Case(9, 24, "wbhf", heads=5, sliced=True),
        Case(2, 5000, "wb", residual=True),
        Case(1, 33000, "wbo", residual=True),
    ],
    shapes=[
        Case(16384, 4096, "wb"),
        Case(16384, 8192, "wb", residual=True),
        Case(8192, 12288, "wb"),
    ],
    differentiable=("x", "residual", "weight", "bias"),
)
