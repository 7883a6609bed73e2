"""Is a result near enough to the exact one? An error budget from plain torch in the same dtype. Needs no Triton.

A result may be twice as far from the fp64 one as the plain torch version in the same dtype is, plus one rounding of the
dtype; the distance is taken over the whole tensor and at the worst element.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from llmbench.kernels.kernel import Inputs, Random

__all__ = ["Verdict", "compare", "held", "nearness"]

Op = Callable[..., Tensor | tuple[Tensor, ...]]
"""What takes the inputs by keyword and returns one tensor or several."""


class Verdict(NamedTuple):
    """One tensor of one case: `error` and `budget` are relative to the reference's norm, or to its largest element,
    whichever comes nearer to its budget."""

    tensor: str
    error: float
    plain_error: float
    budget: float
    passed: bool


def nearness(verdict: Verdict) -> tuple[bool, float]:
    """How near an error is to its budget; what is over it comes first, NaN above all."""
    if not verdict.passed:
        return True, float("inf") if verdict.error != verdict.error else verdict.error
    return False, verdict.error / (verdict.budget or 1.0)


def compare(name: str, found: Tensor, plain: Tensor, exact: Tensor, *, factor: float = 2.0) -> Verdict:
    """Hold `found` to `exact` (fp64), with `plain` as the measure of what the dtype allows, `factor` times its
    error."""
    if found.shape != exact.shape or found.dtype != plain.dtype:
        return Verdict(name, float("inf"), 0.0, 0.0, False)
    rounding = torch.finfo(found.dtype).eps if found.is_floating_point() else 0.0
    exact = exact.double()  # integers have no norm
    if found.is_cuda and found.dtype == torch.float32:
        rounding = 2.0**-11  # tf32 products; the plain version uses them too
    verdicts = []
    for measure in (torch.linalg.vector_norm, lambda x: x.abs().max()):
        if not exact.numel():
            return Verdict(name, 0.0, 0.0, 0.0, True)
        size = float(measure(exact)) or 1.0
        error = float(measure(found.double() - exact)) / size
        plain_error = float(measure(plain.double() - exact)) / size
        budget = factor * plain_error + rounding
        verdicts.append(Verdict(name, error, plain_error, budget, error <= budget))  # False for NaN
    return max(verdicts, key=nearness)


def held(
    run: Op,
    reference: Op,
    inputs: Inputs,
    *,
    differentiable: Sequence[str] = (),
    seed: int = 0,
    factor: float = 2.0,
) -> list[Verdict]:
    """Hold every output of `run`, and its gradients to the inputs that `differentiable` names, to `reference`: a
    function in plain torch that computes in whatever dtype it is given. `factor` as for `compare`: our kernels have 2;
    others may sum in another order, and torch's own then come out somewhat over it in fp32."""
    with _tf32():
        found = _results(run, inputs, differentiable, seed)
        plain = _results(reference, inputs, differentiable, seed)
    exact = _results(reference, _widened(inputs), differentiable, seed)
    return [compare(name, found[name], plain[name], exact[name], factor=factor) for name in exact]


def _results(function: Op, inputs: Inputs, differentiable: Sequence[str], seed: int) -> dict[str, Tensor]:
    """Outputs and gradients by name. The gradient that comes in is the same for every version: random, rounded to the
    dtype of the case."""
    inputs = dict(inputs)
    leaves = [name for name in differentiable if isinstance(inputs.get(name), Tensor)]
    for name in leaves:
        inputs[name] = inputs[name].detach().requires_grad_()
    outputs = function(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = {f"out{i}" if len(outputs) > 1 else "out": out.detach() for i, out in enumerate(outputs)}
    if leaves:
        random = Random(seed + 1, torch.float32, outputs[0].device)
        moving = [out for out in outputs if out.requires_grad]
        into = [random.normal(*out.shape).bfloat16().to(out.dtype) for out in moving]  # exact in every dtype
        grads = torch.autograd.grad(moving, [inputs[name] for name in leaves], into)
        results |= {f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return results


def _widened(inputs: Inputs) -> Inputs:
    """The same values in fp64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


@contextmanager
def _tf32() -> Iterator[None]:
    """fp32 products of plain torch as the kernels make them on a GPU."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if torch.cuda.is_available() else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
