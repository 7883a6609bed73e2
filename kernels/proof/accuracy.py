"""Check results against a reference in fp64. The error budget comes from plain torch in the same dtype. This file does
not import Triton.

The error of a result may be twice the error of plain torch in the same dtype, plus one unit in the last place of the
dtype. Both errors are measured over the whole tensor and at the worst element. Where the reference is infinite or NaN,
the result must be the same.

The error of plain torch may be small by chance. For example, the roundings of a mean loss cancel in part, and the
gradient of a softmax over a single key is computed as exactly 0. A right kernel rounds other intermediate results, so
it may then exceed the budget. So a result that exceeds its budget is checked again: plain torch runs REPLAYS times with
random roundings (`_Rounded`), and its greatest error in these runs takes the place of its error in the budget. This is
Monte Carlo arithmetic (Parker, 1997; Vignes, 1993): the spread under random roundings is the error that roundings
explain. A wrong formula, index or mask has a greater error.

An algorithm may round where plain torch does not. For example, the backward pass of flash attention reads the rounded
output. Then the kernel has a second plain form with these steps (`Kernel.same_steps`), and it is replayed as well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmbench.kernels.kernel import Inputs, Random

__all__ = ["Op", "Verdict", "Weights", "check_against", "compare", "severity", "tf32_products"]

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


def compare(
    name: str, result: Tensor, plain: Tensor, exact: Tensor, *, factor: float = 2.0, replays: Sequence[Tensor] = ()
) -> Verdict:
    """Compare `result` with `exact` in fp64. The budget is `factor` times the error of `plain`, plus one unit in the
    last place. If there are `replays` of `plain`, the greatest of all their errors counts."""
    if result.shape != exact.shape or result.dtype != plain.dtype:
        return Verdict(name, float("inf"), 0.0, 0.0, False)
    if not exact.numel():
        return Verdict(name, 0.0, 0.0, 0.0, True)
    exact = exact.double()  # torch cannot compute the norm of integers
    nearest = exact.to(result.dtype).double()  # infinite if the dtype has no number that is large enough
    exact = torch.where(exact.isfinite() & nearest.isfinite(), exact, nearest)
    error, *plain_errors = (_error(x.double(), exact) for x in (result, plain, *replays))
    plain_errors = [x.where(x.isfinite(), 0.0) for x in plain_errors]  # infinite errors would permit any error
    size = exact.where(exact.isfinite(), 0.0)
    verdicts = []
    for measure in _MEASURES:
        unit = measure(size) or 1.0
        relative, plain_relative = measure(error) / unit, max(map(measure, plain_errors)) / unit
        budget = factor * plain_relative + _rounding(result)
        verdicts.append(Verdict(name, relative, plain_relative, budget, relative <= budget))  # False for NaN
    return max(verdicts, key=severity)


def _error(x: Tensor, exact: Tensor) -> Tensor:
    """Return x - exact. Where `exact` is infinite or NaN, the error is 0 if x is the same, else infinite."""
    same = (x == exact) | (x.isnan() & exact.isnan())
    return torch.where(exact.isfinite(), x - exact, torch.where(same, 0.0, torch.inf))


_MEASURES: tuple[Callable[[Tensor], float], ...] = (
    lambda x: float(torch.linalg.vector_norm(x)),
    lambda x: float(x.abs().max()),
)


def _rounding(x: Tensor) -> float:
    """Return one unit in the last place of x's dtype, as a share of the number. One rounding changes a number by at
    most half of it. On a GPU, fp32 has half a unit of tf32, because our kernels and plain torch multiply it in tf32."""
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
    same_steps: Op | None = None,
) -> list[Verdict]:
    """Check every output of `run`, and its gradients, against `reference`.

    The checked gradients are those of the inputs named in `differentiable` and of `weights`. `reference` is in plain
    torch and computes in the dtype of its inputs. `factor` multiplies the error of plain torch, as in `compare`. It is
    2 for our kernels. Kernels that sum in another order may need more: torch's own kernels slightly exceed 2 in fp32.
    `same_steps` is `reference` with the roundings of the algorithm of `run`.
    """
    weights = weights or Weights()
    device = next((value.device for value in inputs.values() if isinstance(value, Tensor)), torch.device("cpu"))

    with tf32_products(device):
        results = _results(run, inputs, differentiable, weights.values, seed)
        plain = _results(reference, inputs, differentiable, weights.values, seed)
    exact = _results(reference, _widened(inputs), differentiable, weights.exact, seed)
    verdicts = [compare(name, results[name], plain[name], exact[name], factor=factor) for name in exact]
    if all(verdict.passed for verdict in verdicts):
        return verdicts
    replays: list[dict[str, Tensor]] = []

    def again(verdict: Verdict) -> Verdict:
        """Return the verdict with the errors of the replays so far."""
        name = verdict.tensor
        others = [replay[name] for replay in replays]
        return compare(name, results[name], plain[name], exact[name], factor=factor, replays=others)

    for number in range(REPLAYS):
        with tf32_products(device):
            for form in filter(None, (reference, same_steps)):
                replays.append(_results(form, inputs, differentiable, weights.values, seed, _Rounded(number)))
        verdicts = [verdict if verdict.passed else again(verdict) for verdict in verdicts]
        if all(verdict.passed or _hopeless(verdict, exact[verdict.tensor]) for verdict in verdicts):
            break
    return verdicts


def _hopeless(verdict: Verdict, exact: Tensor) -> bool:
    """Return whether further replays cannot change a failed verdict. The errors of a large tensor hardly vary between
    replays, because they are measured over many elements."""
    return exact.numel() >= 1024 and not verdict.error <= 16 * verdict.budget


def _results(
    function: Op,
    inputs: Inputs,
    differentiable: Sequence[str],
    weights: Mapping[str, Tensor],
    seed: int,
    mode: AbstractContextManager[object] | None = None,
) -> dict[str, Tensor]:
    """Return a dictionary of the outputs and gradients by name. The function and its backward pass run in `mode`.

    The gradients of the outputs are random, with equal values in every dtype. If the outputs do not depend on an input,
    the gradient of this input is 0.
    """
    copies = {name: inputs[name].detach().requires_grad_() for name in differentiable if inputs.get(name) is not None}
    leaves = {f"d{name}": leaf for name, leaf in copies.items()} | {f"d {name}": leaf for name, leaf in weights.items()}
    mode = mode or nullcontext()
    with mode:
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
        with mode:
            gradients = torch.autograd.grad(outs, list(leaves.values()), grads, materialize_grads=True)
        results |= dict(zip(leaves, gradients, strict=True))
    return results


def _widened(inputs: Inputs) -> Inputs:
    """Return the inputs with floating-point tensors in fp64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


REPLAYS = 8
"""Runs of plain torch with random roundings. The greatest of 8 errors is about 1.4 standard deviations."""

_EXACT = re.compile(
    "_unsafe_view|amax|cat|clamp|clone|gather|index|index_put|masked_fill|neg|new_zeros|ones_like|relu|scalar_tensor|"
    "scatter|select_backward|slice_backward|sort|stack|threshold_backward|topk|where|zeros_like"
)
"""Names of the ops of torch that copy or choose values, so that they round nothing."""


class _Rounded(TorchDispatchMode):
    """Run torch with random roundings, each by up to half a unit in the last place, the greatest error of one rounding.

    Each floating-point result of an op moves by one rounding of its dtype, and by the roundings inside of the op
    (`_inner_step`). Results that are exactly 0 stay 0 if the op rounds nothing inside. Ops that round nothing, that
    return a view, or that write into a tensor are not changed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and change its results."""
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view or func._schema.is_mutable or _EXACT.fullmatch(name):
            return out
        if name == "_to_copy" and (args[0].itemsize < out.itemsize or not args[0].is_floating_point()):
            return out  # a conversion to a wider format
        if isinstance(out, tuple | list):
            return type(out)(self._moved(x, 0.0) for x in out)
        return self._moved(out, _inner_step(name, args))

    def _moved(self, x: Any, step: Tensor | float) -> Any:
        """Return x, moved by up to `step` plus half a unit in its last place, if it is a floating-point tensor."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        limits = torch.finfo(x.dtype)
        wide = x.double()
        # Numbers below the smallest normal one have the unit smallest_normal · eps.
        unit = wide.abs().clamp(min=limits.smallest_normal) * limits.eps
        noise = torch.rand(x.shape, generator=self.generator, dtype=torch.float64).to(x.device) * 2 - 1
        moved = wide + noise * (unit / 2 + step)
        stays = ((wide == 0) & (step == 0)) | ~moved.isfinite()  # x or a term of its sum may be infinite
        return torch.where(stays, wide, moved).to(x.dtype)


def _inner_step(name: str, args: tuple[Any, ...]) -> Tensor | float:
    """Return the size of the errors of the roundings inside of an op. For ops that are not listed here, return 0.

        matrix product, sum, mean    the partial sums
        log-softmax of x             the two terms x and log Σ exp(x)
        gradient of a softmax p      the two terms p·dp and p·Σ p·dp

    A partial sum of k independent terms t is about √(k · mean(t²)), and each is rounded to fp32. These errors are
    independent. So K terms, summed one after another, have the error eps/2 · √(K/2 · Σ t²). On a GPU, terms of products
    in fp32 are rounded to tf32 first.
    """
    half = torch.finfo(torch.float32).eps / 2
    if name in ("mm", "bmm", "addmm", "baddbmm"):
        a, b = args[-2:]
        per_term = max(half * math.sqrt(a.shape[-1] / 2), _rounding(a) / 2 if a.dtype == torch.float32 else 0.0)
        return ((a.double() ** 2) @ (b.double() ** 2)).sqrt() * per_term
    if name in ("sum", "mean"):
        squares = args[0].double() ** 2
        dims, keep = (*args[1:3], False)[:2] if len(args) > 1 else (tuple(range(squares.dim())), False)
        sums = squares.sum(dims, keepdim=keep)
        terms = squares.numel() / max(1, sums.numel())
        return (sums * (terms / 2)).sqrt() * half / (terms if name == "mean" else 1)
    if name == "_log_softmax":
        x = args[0].double()
        return (x.abs() + x.logsumexp(args[1], keepdim=True).abs()) * half
    if name == "_softmax_backward_data":
        gradient, p, dim, _ = args
        terms = (gradient * p).double().abs()
        return (terms + p * terms.sum(dim, keepdim=True)) * half
    return 0.0


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
