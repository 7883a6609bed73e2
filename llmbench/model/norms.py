"""RMSNorm and LayerNorm with and without weights, in the arithmetic that trained models use; fixed factors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.spec.model import Norm


class NormLayer(nn.Module):
    """A norm over the last dimension [..., D]; statistics in fp32, the result in the input's format.

    `unit_offset` multiplies by 1 + weight (Gemma), in fp32.
    """

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

    def forward(self, x: Tensor) -> Tensor:
        """The normalised x, of its shape."""
        weight, bias = self.weight, self.bias
        if weight is not None and weight.dim() > 1:  # a weight per head: [N, H] against [B, S, N, H]
            return self._plain(x, None, None) * weight + (0 if bias is None else bias)
        if self.norm.unit_offset and weight is not None and self.norm.kind == "rmsnorm" and bias is None:
            out: Tensor = OffsetRMSNorm.apply(x, weight, self.norm.eps)
            return out
        if self.norm.unit_offset and weight is not None:
            out = self._plain(x.float(), None, None) * (1.0 + weight.float())
            return (out if bias is None else out + bias.float()).to(x.dtype)
        return self._plain(x, weight, bias)

    def _plain(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.norm.kind == "layernorm":
            return F.layer_norm(x, (self.width,), weight, bias, self.norm.eps)
        out = F.rms_norm(x, (self.width,), weight, self.norm.eps)  # in fp32 inside, whatever x is
        return out if bias is None else out + bias

    def extra_repr(self) -> str:
        return f"{self.norm.kind}, {self.width}, eps={self.norm.eps}"


def times(x: Tensor, factor: float) -> Tensor:
    """x · factor, and x itself where that is 1."""
    return x if factor == 1.0 else x * factor


class OffsetRMSNorm(torch.autograd.Function):
    """x / rms(x) · (1 + weight) in fp32. Written with its backward, so that it keeps x and one number a row: step by
    step, autograd would keep two fp32 copies of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """The normalised x, in its format."""
        wide = x.float()
        rstd = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, rstd)
        return (wide * rstd * (1.0 + weight.float())).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        """With n = x / rms(x): dn = dy · (1 + weight); dx = (dn - n · mean(dn · n)) / rms(x); dweight = Σ dy · n."""
        x, weight, rstd = ctx.saved_tensors
        grad = grads[0].float()
        normed = x.float() * rstd
        inner = grad * (1.0 + weight.float())
        dx = (inner - normed * (inner * normed).mean(-1, keepdim=True)) * rstd
        dweight = (grad * normed).flatten(0, -2).sum(0)
        return dx.to(x.dtype), dweight.to(weight.dtype), None
