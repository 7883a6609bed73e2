"""Norms as modules, and fixed factors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmbench.model.implementations.interface import Implementation
from llmbench.spec.model import Norm


class Residual(NamedTuple):
    """The residual stream [B, S, D], and what is still to be added to it: the next norm adds it as it reads, in one
    pass where the implementation has one."""

    x: Tensor
    added: Tensor | None = None

    def whole(self) -> Tensor:
        """The sum."""
        return self.x if self.added is None else self.x + self.added


class NormLayer(nn.Module):
    """A norm over the last dimension [..., D]; statistics in fp32, the result in the input's format."""

    def __init__(self, width: int, norm: Norm, *, weight_shape: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.norm = norm
        self.width = width
        shape = weight_shape or (width,)
        self.weight = nn.Parameter(torch.empty(shape)) if norm.weight else None
        self.bias = nn.Parameter(torch.empty(shape)) if norm.bias else None

    def reset_parameters(self) -> None:
        """The identity."""
        with torch.no_grad():
            if self.weight is not None:
                self.weight.fill_(0.0 if self.norm.unit_offset else 1.0)
            if self.bias is not None:
                self.bias.zero_()

    def forward(
        self, x: Tensor, implementation: Implementation, added: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The normalised x, of its shape; where something is `added` to x first, also the sum."""
        normed, summed = implementation.norm(x, added, self.weight, self.bias, self.norm)
        return normed if added is None else (normed, summed)

    def read(self, stream: Residual, implementation: Implementation) -> tuple[Tensor, Residual]:
        """The normalised stream, and the stream with nothing to be added any more."""
        if stream.added is None:
            return self(stream.x, implementation), stream
        normed, summed = self(stream.x, implementation, stream.added)
        return normed, Residual(summed)

    def extra_repr(self) -> str:
        return f"{self.norm.kind}, {self.width}, eps={self.norm.eps}"


def times(x: Tensor, factor: float) -> Tensor:
    """x · factor, and x itself where that is 1."""
    return x if factor == 1.0 else x * factor
