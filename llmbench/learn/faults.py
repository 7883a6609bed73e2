"""Find out whether and where a training run has become NaN or infinite."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llmbench.errors import LLMBenchError
from llmbench.learn.parallel import whole
from llmbench.model.decoder import Decoder
from llmbench.model.residual import Residual

__all__ = ["DivergedError", "NotFiniteError", "cause_of", "module_of", "refuse_divergence"]


class DivergedError(LLMBenchError):
    """A loss, a gradient, a weight or a state of the optimizer is NaN or infinite. The process exits with code 1.

    `step`: the step that failed. `cause`: the first module, gradient, weight or state that is not finite.
    `kept`: the last checkpoint of the run, whose numbers are finite. None: the run has none.
    """

    exit_code = 1

    def __init__(self, step: int, cause: str, kept: Path | None = None) -> None:
        last = "" if kept is None else f"; the last good checkpoint is {kept}"
        super().__init__(
            f"step {step}: {cause}",
            hint=f"train with a smaller --lr, a longer --warmup or `--setting clip=0.5`{last}",
        )
        self.step, self.cause = step, cause


class NotFiniteError(LLMBenchError):
    """A trained model computes NaN or infinity for `tokens` [B, S]. The process exits with code 1."""

    exit_code = 1

    def __init__(self, model: Decoder, tokens: Tensor) -> None:
        cause = module_of(model, tokens, tokens) or "its logits are finite, but its loss is not"
        super().__init__(
            f"{model.spec.name} computes NaN or infinity: {cause}",
            hint="its weights are damaged or not finite, or its number format (--dtype) is too small for its values",
        )


def refuse_divergence(step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise DivergedError if a weight or a state of the optimizer is not finite after `step`."""
    states = {
        name: [weight.detach(), *(value for value in _tensors_of(optimizer, weight) if value.shape == weight.shape)]
        for name, weight in model.named_parameters()
    }
    if not _largest([tensor for tensors in states.values() for tensor in tensors]) < math.inf:
        name = next(name for name, tensors in states.items() if not _largest(tensors) < math.inf)
        raise DivergedError(step, f"the weight {name} or its state in the optimizer is not finite after the update")


def _tensors_of(optimizer: torch.optim.Optimizer, weight: Tensor) -> list[Tensor]:
    return [value for value in optimizer.state.get(weight, {}).values() if isinstance(value, Tensor)]


def _largest(tensors: list[Tensor]) -> float:
    """Return the largest absolute value in all tensors, which may be divided among ranks. NaN if one is NaN."""
    return float(whole(nn.utils.get_total_norm(tensors, norm_type=math.inf)))


def module_of(model: Decoder, tokens: Tensor, targets: Tensor) -> str | None:
    """Return a sentence about the first module whose output is not finite for these tokens, or None if all are.

    Runs a forward pass of `tokens` and `targets` [B, S].
    """
    found: list[str] = []
    names = {module: name for name, module in model.named_modules() if name}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        if not found and not all(_finite(part) for part in _tensors(output)):
            found.append(names[module])

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            loss = model(tokens, targets=targets)
    finally:
        for hook in hooks:
            hook.remove()
    if found:
        return f"the output of {found[0]} is the first that is not finite"
    if not _finite(loss):
        return "the loss is not finite, but every output of a module is"
    return None


def cause_of(model: Decoder, tokens: Tensor, targets: Tensor) -> str:
    """Return a sentence about the first module whose output is not finite, or else about the first such gradient.

    Runs the forward pass of `tokens` and `targets` [B, S] again. The gradients are those of the failed step.
    """
    if (module := module_of(model, tokens, targets)) is not None:
        return module
    # The backward pass begins at the last module.
    gradients = [
        name for name, weight in model.named_parameters() if weight.grad is not None and not _finite(weight.grad)
    ]
    if gradients:
        return f"the loss is finite, but the gradient of {gradients[-1]} is not"
    return "the norm of all gradients is too large for fp32"


def _tensors(output: Any) -> list[Tensor]:
    """Return the floating-point tensors in the output of a module."""
    if isinstance(output, Residual):
        return [output.whole()]
    if isinstance(output, (tuple, list)):
        return [tensor for part in output for tensor in _tensors(part)]
    return [output] if isinstance(output, Tensor) and output.is_floating_point() else []


def _finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())
