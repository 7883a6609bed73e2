"""xIELU, the trained activation of Apertus (arXiv 2411.13010)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.spec.ffn import XIELU_CONSTANTS


class XIELU(nn.Module):
    """An elementwise function with two trained numbers a and b per layer, and two constants β and ε.

    - for x > 0: softplus(a) · x² + β · x
    - else: (β + softplus(b)) · (exp(min(x, ε)) − 1 − x) + β · x

    `weight` has a and b, `constants` has β and ε.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2))
        self.constants: Tensor
        self.register_buffer("constants", torch.empty(XIELU_CONSTANTS))

    def reset_parameters(self) -> None:
        """Set the initial values of the paper: both curvatures are 0.8, β = 0.5, ε = -1e-6."""
        with torch.no_grad():
            self.weight.copy_(torch.tensor([_inverse_softplus(0.8), _inverse_softplus(0.8 - 0.5)]))
            self.constants.copy_(torch.tensor([0.5, -1e-6]))

    def forward(self, x: Tensor) -> Tensor:
        """Return the activation of x, with the shape of x."""
        beta, eps = self.constants
        positive, negative = F.softplus(self.weight)
        below = (torch.expm1(torch.minimum(x, eps)) - x) * (beta + negative)
        return torch.where(x > 0, positive * x * x, below) + beta * x


def _inverse_softplus(y: float) -> float:
    return math.log(math.expm1(y))
