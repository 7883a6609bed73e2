"""RMSNorm and LayerNorm with and without weights, in the arithmetic that trained models use."""

from __future__ import annotations

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
        if self.norm.unit_offset and weight is not None:
            out = self._plain(x.float(), None, None) * (1.0 + weight.float())
            return out.to(x.dtype)
        return self._plain(x, weight, bias)

    def _plain(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if self.norm.kind == "layernorm":
            return F.layer_norm(x, (self.width,), weight, bias, self.norm.eps)
        out = F.rms_norm(x.float(), (self.width,), None, self.norm.eps).to(x.dtype)
        return out if weight is None else out * weight

    def extra_repr(self) -> str:
        return f"{self.norm.kind}, {self.width}, eps={self.norm.eps}"
