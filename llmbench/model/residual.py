"""The residual stream, and the one place where its sum waits for the norm that reads it.

A layer is written as `x = x.plus(f(norm(x)))`. `plus` computes nothing yet: the next norm adds the output as it reads
x, in one kernel where the implementation has one (`fused`). That saves a pass over memory; the numbers are the same.

B batch, S length, D hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import register_pytree_node


@dataclass(eq=False)
class Residual:
    """The residual stream [B, S, D]: `x`, and `added`, the output of a sublayer that is not in the sum yet."""

    x: Tensor
    added: Tensor | None = None

    def plus(self, out: Tensor) -> Residual:
        """x + out, for the output of a sublayer [B, S, D]. (torch.compile cannot trace an operator `+` here.)"""
        return Residual(self.whole(), out)

    def whole(self) -> Tensor:
        """The sum [B, S, D], where no norm reads it."""
        if self.added is not None:
            self.settle(self.x + self.added)
        return self.x

    def settle(self, total: Tensor) -> None:
        """Replace the two terms by their sum, so that it is computed once."""
        self.x, self.added = total, None


def _flatten(stream: Residual) -> tuple[list[Any], None]:
    return [stream.x, stream.added], None


def _unflatten(tensors: Any, _: None) -> Residual:
    return Residual(*tensors)


# FSDP must find the tensors in the inputs and outputs of a layer: torch 2.13 looks into dataclasses, 2.11 into pytrees.
register_pytree_node(Residual, _flatten, _unflatten)
