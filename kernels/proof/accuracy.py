"""Check results against a reference in fp64. The error budget comes from plain torch in the same dtype. This file does
not import Triton.

The error of a result may be twice the error of plain torch in the same dtype, plus one rounding of the dtype. Both
errors are measured over the whole tensor and at the worst element.

In a sum, the errors of plain torch may cancel by chance, or the terms may cancel completely. The errors of our kernel
may then not cancel, and exceed the budget. So two kinds of results that exceed their budget are checked again, with the
separate terms of their sums (`_Uncancelled`):

- a gradient smaller than one rounding of its terms, such as that of a softmax over a single key, which is 0;
- a mean loss. In plain torch, the errors of the tokens may cancel in the mean. The budget therefore comes from the mean
  of the absolute errors of the tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmbench.kernels.kernel import Inputs, Random

__all__ = ["Verdict", "Weights", "check_against", "compare", "severity", "tf32_products"]

Op = Callable[..., Tensor | tuple[Tensor, ...]]
"""A function that takes the inputs by keyword and returns a tensor or a tuple of tensors."""


class Weights(NamedTuple):
    """Named tensors that the functions use besides their inputs, such as parameters. `values` are in the dtype of the
    case, and `exact` are in fp64."""

    values: Mapping[str, Tensor] = {}
    exact: Mapping[str, Tensor] = {}


class Verdict(NamedTuple):
    """The check of one tensor of one case.

    `error` and `budget` are relative to the norm of the reference, or to its largest element. Of these two checks, the
    verdict keeps the one that is nearer to its budget.
    """

    tensor: str
    error: float
    plain_error: float
    budget: float
    passed: bool


def severity(verdict: Verdict) -> tuple[bool, float]:
    """Return a sort key: the error as a share of its budget. Failed checks come after all others, and NaN is the
    greatest."""
    if not verdict.passed:
        return True, float("inf") if verdict.error != verdict.error else verdict.error
    return False, verdict.error / (verdict.budget or 1.0)


def compare(name: str, result: Tensor, plain: Tensor, exact: Tensor, *, factor: float = 2.0) -> Verdict:
    """Compare `result` with `exact` in fp64. The budget is `factor` times the error of `plain`, plus one rounding."""
    if result.shape != exact.shape or result.dtype != plain.dtype:
        return Verdict(name, float("inf"), 0.0, 0.0, False)
    error, plain_error = _difference(result, exact), _difference(plain, exact)
    return _verdict(name, error, plain_error, exact.double(), _rounding(result), factor)


def _verdict(name: str, error: Tensor, plain_error: Tensor, size: Tensor, rounding: float, factor: float) -> Verdict:
    """Return the verdict from the elementwise errors of a result and of plain torch, relative to `size`. All three
    tensors are in fp64.

    Infinite elements of `size` are left out, because every finite error is small next to them. Infinite errors of plain
    torch are left out, because they would permit any error.
    """
    if not size.numel():
        return Verdict(name, 0.0, 0.0, 0.0, True)
    size, plain_error = (torch.where(x.isinf(), 0.0, x) for x in (size, plain_error))
    verdicts = []
    for measure in _MEASURES:
        unit = measure(size) or 1.0
        relative, plain_relative = measure(error) / unit, measure(plain_error) / unit
        budget = factor * plain_relative + rounding
        verdicts.append(Verdict(name, relative, plain_relative, budget, relative <= budget))  # False for NaN
    return max(verdicts, key=severity)


_MEASURES: tuple[Callable[[Tensor], float], ...] = (
    lambda x: float(torch.linalg.vector_norm(x)),
    lambda x: float(x.abs().max()),
)


def _rounding(x: Tensor) -> float:
    """Return the relative size of one rounding in x's dtype. On a GPU, this is a rounding in tf32 for fp32, because our
    kernels and plain torch multiply fp32 in tf32."""
    if x.is_cuda and x.dtype == torch.float32:
        return 2.0**-11
    return torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0


def check_against(
    run: Op,
    reference: Op,
    inputs: Inputs,
    *,
    differentiable: Sequence[str] = (),
    weights: Weights | None = None,
    seed: int = 0,
    factor: float = 2.0,
) -> list[Verdict]:
    """Check every output of `run`, and its gradients, against `reference`.

    The checked gradients are those of the inputs named in `differentiable` and of `weights`. `reference` is in plain
    torch and computes in the dtype of its inputs. `factor` multiplies the error of plain torch, as in `compare`. It is
    2 for our kernels. Kernels that sum in another order may need more: torch's own kernels slightly exceed 2 in fp32.
    """
    weights = weights or Weights()
    device = next((value.device for value in inputs.values() if isinstance(value, Tensor)), torch.device("cpu"))

    def plain_results() -> dict[str, Tensor]:
        with tf32_products(device):
            return _results(reference, inputs, differentiable, weights.values, seed)

    def exact_results() -> dict[str, Tensor]:
        return _results(reference, _widened(inputs), differentiable, weights.exact, seed)

    with tf32_products(device):
        results = _results(run, inputs, differentiable, weights.values, seed)
    plain, exact = plain_results(), exact_results()
    verdicts = [compare(name, results[name], plain[name], exact[name], factor=factor) for name in exact]
    if all(verdict.passed for verdict in verdicts):
        return verdicts
    with _Uncancelled() as plain_sums:
        plain_terms = plain_results()
    with _Uncancelled() as sums:
        terms = exact_results()
    loss_errors = None
    if plain_sums.losses is not None and sums.losses is not None:
        loss_errors = _difference(plain_sums.losses, sums.losses)

    def by_terms(verdict: Verdict) -> Verdict:
        """Return a verdict from the terms of the sum if the tensor is a mean loss or a gradient that cancels. Otherwise
        return `verdict`."""
        result = results[verdict.tensor]
        total, rounding = exact[verdict.tensor], _rounding(plain[verdict.tensor])
        if result.shape != total.shape or result.dtype != plain[verdict.tensor].dtype:
            return verdict
        error = _difference(result, total)
        if not total.dim() and loss_errors is not None:
            return _verdict(verdict.tensor, error, loss_errors.abs().mean(), total, rounding, factor)
        size = terms[verdict.tensor].double()
        if any(measure(total) > rounding * measure(size) for measure in _MEASURES):
            return verdict
        return _verdict(verdict.tensor, error, plain_terms[verdict.tensor].double() - size, size, rounding, factor)

    return [verdict if verdict.passed else by_terms(verdict) for verdict in verdicts]


def _difference(result: Tensor, exact: Tensor) -> Tensor:
    """Return result - exact in fp64. Two equal infinities differ by 0, and an infinity differs from any other number by
    an infinity."""
    result, exact = result.double(), exact.double()  # they may have integers, of which torch computes no norm
    return torch.where(result == exact, 0.0, result - exact)


def _results(
    function: Op, inputs: Inputs, differentiable: Sequence[str], weights: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Return a dictionary of the outputs and gradients by name.

    The gradients of the outputs are random, with equal values in every dtype. If the outputs do not depend on an input,
    the gradient of this input is 0.
    """
    copies = {name: inputs[name].detach().requires_grad_() for name in differentiable if inputs.get(name) is not None}
    leaves = {f"d{name}": leaf for name, leaf in copies.items()} | {f"d {name}": leaf for name, leaf in weights.items()}
    outputs = function(**(inputs | copies))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = {f"out{i}" if len(outputs) > 1 else "out": out.detach() for i, out in enumerate(outputs)}
    if leaves:
        random = Random(seed + 1, torch.float32, outputs[0].device)
        # bf16 values are exact in every dtype.
        incoming = [random.normal(*out.shape).bfloat16().to(out.dtype) for out in outputs]
        dependent = [(out, grad) for out, grad in zip(outputs, incoming, strict=True) if out.requires_grad]
        if not dependent:
            return results | {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        outs, grads = zip(*dependent, strict=True)
        gradients = torch.autograd.grad(outs, list(leaves.values()), grads, materialize_grads=True)
        results |= dict(zip(leaves, gradients, strict=True))
    return results


def _widened(inputs: Inputs) -> Inputs:
    """Return the inputs with floating-point tensors in fp64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


class _Uncancelled(TorchDispatchMode):
    """Run plain torch again, but with the absolute values of terms that may cancel. The results show the size of the
    terms.

    The gradient of a softmax p is p·dp - p·Σ p·dp. It is replaced by the sum of the absolute values of these terms.
    `losses`: the losses of the single tokens in the last mean cross-entropy.
    """

    losses: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`. For the gradient of a softmax, run its replacement."""
        if func is torch.ops.aten.nll_loss_forward.default:
            log_probabilities, targets, weight, _, ignored = args
            self.losses, _ = func(log_probabilities, targets, weight, 0, ignored)  # reduction 0 means "none"
        if func is not torch.ops.aten._softmax_backward_data.default:
            return func(*args, **(kwargs or {}))
        grad, weights, dim, dtype = args
        terms = (weights * grad).abs()
        return (terms + weights * terms.sum(dim, keepdim=True)).to(dtype)


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Let torch multiply fp32 matrices on a GPU in tf32, as our kernels do. All comparisons of results or times use
    this."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
