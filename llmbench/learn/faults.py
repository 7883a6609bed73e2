"""Find the module whose output is first not finite, after a loss became NaN or infinite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from llmbench.errors import LLMBenchError
from llmbench.model.decoder import Decoder
from llmbench.model.residual import Residual

__all__ = ["DivergedError", "cause_of"]


class DivergedError(LLMBenchError):
    """The loss or a gradient of a training run is NaN or infinite. The process exits with code 1.

    `step`: the step that failed. `cause`: the first module or gradient that is not finite.
    """

    exit_code = 1

    def __init__(self, step: int, cause: str) -> None:
        super().__init__(
            f"step {step}: {cause}",
            hint="train with a smaller --lr, a longer --warmup or a smaller --clip; the last checkpoint stays as it is",
        )
        self.step, self.cause = step, cause


def cause_of(model: Decoder, tokens: Tensor, targets: Tensor) -> str:
    """Return a sentence about the first module whose output is not finite, or else about the first such gradient.

    Runs the forward pass of `tokens` and `targets` [B, S] again. The gradients are those of the failed step.
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
