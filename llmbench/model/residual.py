"""The residual stream. It delays the addition of a sublayer's output until the next norm reads the sum.

A layer is written as `x = x.plus(f(norm(x)))`. `plus` computes nothing. The next norm computes the sum when it reads x.
An implementation may compute sum and norm in one kernel (`fused`), which saves a pass over memory. The result is the
same.

Dimensions: B batch, S length, D hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import register_pytree_node


@dataclass(eq=False)
class Residual:
    """The residual stream [B, S, D]: the sum of `x` and `added`, a sublayer's output that is not added yet."""

    x: Tensor
    added: Tensor | None = None

    def plus(self, out: Tensor) -> Residual:
        """Return the residual stream after a sublayer with the output `out` [B, S, D].

        This is a method, because torch.compile cannot trace an operator `+` here.
        """
        return Residual(self.whole(), out)

    def whole(self) -> Tensor:
        """Return the sum [B, S, D], for code that reads the residual stream without a norm."""
        if self.added is not None:
            self.settle(self.x + self.added)
        return self.x

    def settle(self, total: Tensor) -> None:
        """Replace the two terms by their sum, so that the sum is computed only once."""
        self.x, self.added = total, None


def _flatten(stream: Residual) -> tuple[list[Any], None]:
    return [stream.x, stream.added], None


def _unflatten(tensors: Any, _: None) -> Residual:
    return Residual(*tensors)


# FSDP must find the tensors in the inputs and outputs of a layer, which are of the type Residual. FSDP of torch 2.13
# searches dataclasses. FSDP of torch 2.11 searches only pytrees, so Residual is registered as a pytree.
register_pytree_node(Residual, _flatten, _unflatten)
