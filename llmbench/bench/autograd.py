"""What a clock calls: a forward pass, the backward pass of one, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llmbench.measure.clock import Call
from llmbench.measure.memory import RepeatableBackward
from llmbench.sizing.work import Pass

__all__ = ["one_pass"]


def one_pass(
    run: Callable[..., Any],
    inputs: Mapping[str, Any],
    of: Pass,
    *,
    differentiable: Sequence[str] = (),
    weights: Iterable[Tensor] = (),
) -> Call:
    """A pass of `run(**inputs)`, which gives a tensor or several. Forward keeps nothing for a backward pass, and
    backward has its forward pass done. There are gradients for the inputs that `differentiable` names, where they are
    tensors, and for `weights`; they are not kept."""
    if of == "forward":

        def forward() -> object:
            with torch.no_grad():
                return run(**inputs)

        return forward
    given = dict(inputs)
    given |= {
        name: value.detach().requires_grad_()
        for name in differentiable
        if isinstance(value := inputs.get(name), Tensor)
    }
    wanted = [given[name] for name in differentiable if isinstance(given.get(name), Tensor)] + list(weights)
    assert wanted, "nothing here has gradients"
    grads: list[Tensor] = []

    def outputs() -> list[Tensor]:
        out = run(**given)
        return [each for each in (out if isinstance(out, tuple) else (out,)) if each.requires_grad]

    def backward(outs: list[Tensor], again: bool) -> object:
        if not grads:
            grads.extend(torch.randn_like(out) for out in outs)
        return torch.autograd.grad(outs, wanted, grads, retain_graph=again, allow_unused=True)

    if of == "both":
        return lambda: backward(outputs(), again=False)
    return RepeatableBackward(outputs, backward)
