"""Is a result near enough to the exact one? An error budget from plain torch in the same dtype. Needs no Triton.

A result may be twice as far from the fp64 one as the plain torch version in the same dtype is, plus one rounding of the
dtype; the distance is taken over the whole tensor and at the worst element.

Of a sum plain torch may be right by luck, which no other kernel has: its errors cancel, or its terms do so altogether.
What is over its budget is therefore looked at again by its terms (`_Apart`), where that is a

- gradient smaller than one rounding of its terms, as behind a softmax over a single key, where it is 0;
- mean loss: its error is at most the mean of those of its tokens, and plain torch is taken to be off by that mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from llmbench.kernels.kernel import Inputs, Random

__all__ = ["Verdict", "Weights", "compare", "held", "nearness", "tf32_products"]

Op = Callable[..., Tensor | tuple[Tensor, ...]]
"""What takes the inputs by keyword and returns one tensor or several."""


class Weights(NamedTuple):
    """Tensors by name that functions compute with besides their inputs: those of the case, and the same in fp64."""

    given: Mapping[str, Tensor] = {}
    exact: Mapping[str, Tensor] = {}


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
    exact = exact.double()  # integers have no norm
    return _verdict(name, found.double() - exact, plain.double() - exact, exact, _rounding(found), factor)


def _verdict(name: str, off: Tensor, plain_off: Tensor, size: Tensor, rounding: float, factor: float) -> Verdict:
    """Of how far a result and the plain one are off, relative to `size`; all [...] in fp64."""
    if not size.numel():
        return Verdict(name, 0.0, 0.0, 0.0, True)
    verdicts = []
    for measure in _MEASURES:
        unit = measure(size) or 1.0
        error, plain_error = measure(off) / unit, measure(plain_off) / unit
        budget = factor * plain_error + rounding
        verdicts.append(Verdict(name, error, plain_error, budget, error <= budget))  # False for NaN
    return max(verdicts, key=nearness)


_MEASURES: tuple[Callable[[Tensor], float], ...] = (
    lambda x: float(torch.linalg.vector_norm(x)),
    lambda x: float(x.abs().max()),
)


def _rounding(x: Tensor) -> float:
    """A rounding of its format; on a GPU fp32 products are tf32, those of the plain version too."""
    if x.is_cuda and x.dtype == torch.float32:
        return 2.0**-11
    return torch.finfo(x.dtype).eps if x.is_floating_point() else 0.0


def held(
    run: Op,
    reference: Op,
    inputs: Inputs,
    *,
    differentiable: Sequence[str] = (),
    weights: Weights | None = None,
    seed: int = 0,
    factor: float = 2.0,
) -> list[Verdict]:
    """Hold every output of `run`, and its gradients to the inputs that `differentiable` names and to `weights`, to
    `reference`: a function in plain torch that computes in whatever dtype it is given. `factor` as for `compare`: our
    kernels have 2; others may sum in another order, and torch's own then come out somewhat over it in fp32."""
    weights = weights or Weights()
    device = next((value.device for value in inputs.values() if isinstance(value, Tensor)), torch.device("cpu"))

    def plainly() -> dict[str, Tensor]:
        with tf32_products(device):
            return _results(reference, inputs, differentiable, weights.given, seed)

    def exactly() -> dict[str, Tensor]:
        return _results(reference, _widened(inputs), differentiable, weights.exact, seed)

    with tf32_products(device):
        found = _results(run, inputs, differentiable, weights.given, seed)
    plain, exact = plainly(), exactly()
    verdicts = [compare(name, found[name], plain[name], exact[name], factor=factor) for name in exact]
    if all(verdict.passed for verdict in verdicts):
        return verdicts
    with _Apart() as plain_sums:
        plain_terms = plainly()
    with _Apart() as sums:
        terms = exactly()
    off_losses = _difference(plain_sums.losses, sums.losses)

    def by_terms(verdict: Verdict) -> Verdict:
        """Where the terms say more than the sum, the verdict by them."""
        own = found[verdict.tensor]
        total, rounding = exact[verdict.tensor], _rounding(plain[verdict.tensor])
        if own.shape != total.shape or own.dtype != plain[verdict.tensor].dtype:
            return verdict
        off = own.double() - total
        if not total.dim() and off_losses is not None:
            return _verdict(verdict.tensor, off, off_losses.abs().mean(), total, rounding, factor)
        size = terms[verdict.tensor].double()
        if any(measure(total) > rounding * measure(size) for measure in _MEASURES):
            return verdict
        return _verdict(verdict.tensor, off, plain_terms[verdict.tensor].double() - size, size, rounding, factor)

    return [verdict if verdict.passed else by_terms(verdict) for verdict in verdicts]


def _difference(plain: Tensor | None, exact: Tensor | None) -> Tensor | None:
    return None if plain is None or exact is None else plain.double() - exact


def _results(
    function: Op, inputs: Inputs, differentiable: Sequence[str], weights: Mapping[str, Tensor], seed: int
) -> dict[str, Tensor]:
    """Outputs and gradients by name. The gradient that comes in is the same for every version: random, rounded to the
    dtype of the case. What the outputs do not depend on has the gradient 0."""
    own = {name: inputs[name].detach().requires_grad_() for name in differentiable if inputs.get(name) is not None}
    leaves = {f"d{name}": leaf for name, leaf in own.items()} | {f"d {name}": leaf for name, leaf in weights.items()}
    outputs = function(**(inputs | own))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = {f"out{i}" if len(outputs) > 1 else "out": out.detach() for i, out in enumerate(outputs)}
    if leaves:
        random = Random(seed + 1, torch.float32, outputs[0].device)
        into = [random.normal(*out.shape).bfloat16().to(out.dtype) for out in outputs]  # exact in every dtype
        moving = [(out, grad) for out, grad in zip(outputs, into, strict=True) if out.requires_grad]
        if not moving:
            return results | {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        outs, grads = zip(*moving, strict=True)
        found = torch.autograd.grad(outs, list(leaves.values()), grads, materialize_grads=True)
        results |= dict(zip(leaves, found, strict=True))
    return results


def _widened(inputs: Inputs) -> Inputs:
    """The same values in fp64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


class _Apart(TorchDispatchMode):
    """Plain torch with its sums taken apart. The gradient of a softmax p, p·dp - p·Σ p·dp, becomes the sum of these
    terms without their signs; `losses` are those of which a mean cross-entropy was taken."""

    losses: Tensor | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func`, or what stands for the gradient of a softmax."""
        if func is torch.ops.aten.nll_loss_forward.default:
            log_probabilities, targets, weight, _, ignored = args
            self.losses, _ = func(log_probabilities, targets, weight, 0, ignored)  # 0: no mean
        if func is not torch.ops.aten._softmax_backward_data.default:
            return func(*args, **(kwargs or {}))
        grad, weights, dim, dtype = args
        terms = (weights * grad).abs()
        return (terms + weights * terms.sum(dim, keepdim=True)).to(dtype)


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """On a GPU torch multiplies fp32 matrices as our kernels do, in tf32; nothing else changes. What is compared, right
    or fast, is compared so."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
