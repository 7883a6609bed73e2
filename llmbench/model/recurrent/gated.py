"""Gated recurrences without matrix states: Griffin's RG-LRU (arXiv 2402.19427) and LFM2's short convolution.

Dimensions: B batch, S length, D hidden size, W recurrent width, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.model.recurrent.scan import elementwise_scan, inverse_softplus, zero_padding
from llmbench.model.recurrent.state import CausalConv, RecurrentState
from llmbench.model.step import Step
from llmbench.spec.mixer import RGLRU, ShortConv
from llmbench.spec.model import ModelSpec

SHARPNESS = 8.0
"""The constant c in the decay a = exp(−c · softplus(Λ) · r)."""


class BlockDiagonal(nn.Module):
    """A linear layer with one square matrix per head: weight [H, W/H in, W/H out], bias [H, W/H]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        block = width // heads
        self.weight = nn.Parameter(torch.empty(heads, block, block))
        self.bias = nn.Parameter(torch.empty(heads, block))

    def reset_parameters(self) -> None:
        """Draw weights from a normal distribution with variance 1 / inputs, and set the bias to zero."""
        with torch.no_grad():
            self.weight.normal_(0.0, self.weight.shape[1] ** -0.5)
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Multiply each head of x by its matrix, [B, S, W] to [B, S, W]."""
        heads = x.unflatten(-1, (self.weight.shape[0], -1)).unsqueeze(-2)  # [B, S, H, 1, W/H]
        return ((heads @ self.weight).squeeze(-2) + self.bias).flatten(-2)


class RGLRULayer(nn.Module):
    """The RG-LRU of Griffin: h_t = a_t h_{t-1} + √(1 − a_t²) · i_t · u_t.

    u is the output of a short convolution. The gates r and i are computed from u, and r determines the decay a. The
    states h are multiplied by the output of a parallel GELU branch. The factor √(1 − a_t²) is 1 for the first token of
    a sequence.
    """

    def __init__(self, spec: ModelSpec, mixer: RGLRU) -> None:
        super().__init__()
        self.mixer = mixer
        width = mixer.lru_width
        self.linear_y = nn.Linear(spec.hidden_size, width)
        self.linear_x = nn.Linear(spec.hidden_size, width)
        self.conv = CausalConv(width, mixer.conv_kernel, bias=True)
        self.input_gate = BlockDiagonal(width, mixer.num_heads)
        self.recurrent_gate = BlockDiagonal(width, mixer.num_heads)
        self.recurrent_param = nn.Parameter(torch.empty(width))
        self.linear_out = nn.Linear(width, spec.hidden_size)

    def reset_parameters(self) -> None:
        """Draw decays a so that a² is uniform between 0.9² and 0.999² if the gate r is 1 (Griffin, section 2.4)."""
        with torch.no_grad():
            squares = torch.empty_like(self.recurrent_param, dtype=torch.float32).uniform_(0.9**2, 0.999**2)
            self.recurrent_param.copy_(inverse_softplus(-0.5 * squares.log() / SHARPNESS))

    def forward(self, x: Tensor, step: Step, state: RecurrentState | None, shared: object) -> tuple[Tensor, object]:
        """Return the output [B, S, D] of the recurrence for x [B, S, D], and `shared` unchanged."""
        branch = F.gelu(self.linear_y(x), approximate="tanh")
        u = self.conv(self.linear_x(x), state, step.valid)
        forget = torch.sigmoid(self.recurrent_gate(u)).float()
        log_decay = -SHARPNESS * forget * F.softplus(self.recurrent_param.float())
        # The gradient of the square root is infinite at zero, so its argument stays above zero.
        factor = (-torch.expm1(2 * log_decay)).clamp(min=1e-12).sqrt()
        factor = torch.where(step.positions[:, :, None] == 0, 1.0, factor)
        inputs = (u * torch.sigmoid(self.input_gate(u))).float() * factor
        decay = zero_padding(log_decay, step.valid).exp()
        cached = None if state is None else state.state
        start = torch.zeros_like(decay[:, 0]) if cached is None else cached
        h = elementwise_scan(decay, zero_padding(inputs, step.valid), start)
        if state is not None:
            state.state = h[:, -1]
        return self.linear_out(h.to(x.dtype) * branch), shared


class ShortConvLayer(nn.Module):
    """A gated short convolution: out(c · conv(b · u)). One projection computes b, c and u."""

    def __init__(self, spec: ModelSpec, mixer: ShortConv) -> None:
        super().__init__()
        self.in_proj = nn.Linear(spec.hidden_size, 3 * mixer.width, bias=mixer.bias)
        self.conv = CausalConv(mixer.width, mixer.conv_kernel, bias=mixer.bias)
        self.out_proj = nn.Linear(mixer.width, spec.hidden_size, bias=mixer.bias)

    def forward(self, x: Tensor, step: Step, state: RecurrentState | None, shared: object) -> tuple[Tensor, object]:
        """Return the output [B, S, D] of the gated convolution for x [B, S, D], and `shared` unchanged."""
        before, after, u = self.in_proj(x).chunk(3, dim=-1)
        return self.out_proj(after * self.conv(before * u, state, step.valid)), shared
