"""Norms as modules, and multiplication by a constant."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmbench.model.implementations.interface import Implementation
from llmbench.model.residual import Residual
from llmbench.spec.model import Norm


class NormLayer(nn.Module):
    """A norm over the last dimension of [..., D].

    Statistics are computed in fp32. The result has the number format of the input.
    """

    def __init__(self, width: int, norm: Norm, *, weight_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.norm = norm
        self.width = width
        shape = weight_shape or (width,)
        self.weight = nn.Parameter(torch.empty(shape)) if norm.weight else None
        self.bias = nn.Parameter(torch.empty(shape)) if norm.bias else None

    def reset_parameters(self) -> None:
        """Set the weight so that the norm multiplies by 1, and the bias to zero."""
        with torch.no_grad():
            if self.weight is not None:
                self.weight.fill_(0.0 if self.norm.unit_offset else 1.0)
            if self.bias is not None:
                self.bias.zero_()

    def forward(self, x: Tensor | Residual, implementation: Implementation) -> Tensor:
        """Return the normalised x, with the shape of x.

        If x is a Residual with a delayed sum, the same call also computes the sum and stores it in x.
        """
        if not isinstance(x, Residual):
            return implementation.norm(x, None, self.weight, self.bias, self.norm)[0]
        normed, total = implementation.norm(x.x, x.added, self.weight, self.bias, self.norm)
        x.settle(total)
        return normed

    def extra_repr(self) -> str:
        return f"{self.norm.kind}, {self.width}, eps={self.norm.eps}"


def times(x: Tensor, factor: float) -> Tensor:
    """Multiply x by a constant. A factor of 1 returns x itself."""
    return x if factor == 1.0 else x * factor
