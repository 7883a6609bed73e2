"""Selective state space models: Mamba (S6, arXiv 2312.00752) and Mamba-2 (SSD, arXiv 2405.21060).

Dimensions: B batch, S length, D hidden size, I inner width, N state width, R rank of the time step. In Mamba-2 also: H
heads, P head width, G groups of heads that share the vectors B and C.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.model.norms import NormLayer, times
from llmbench.model.recurrent.scan import elementwise_scan, inverse_softplus, matrix_scan, zero_padding
from llmbench.model.recurrent.state import CausalConv, RecurrentState
from llmbench.model.step import Step
from llmbench.spec.mixer import Mamba, Mamba2
from llmbench.spec.model import ModelSpec, Norm

SEGMENT = 64
"""Tokens per segment. Mamba materialises the states of one segment at a time, and passes the last state to the next
segment. On a CPU, a training step takes about half as long as with 256 tokens, because more of the states stay in its
caches."""

TIME_STEPS = (1e-3, 1e-1)
"""The range of the initial time steps. Their logarithms are distributed uniformly."""


class MambaLayer(nn.Module):
    """Mamba: h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t, y_t = C_t h_t + D u_t, then a gate.

    u is the input of the recurrence, h its state, and y its output. Δ, B and C are computed from u. A and D are
    weights.
    """

    def __init__(self, spec: ModelSpec, mixer: Mamba) -> None:
        super().__init__()
        self.mixer = mixer
        width, state, rank = mixer.intermediate_size, mixer.state_size, mixer.time_step_rank
        self.in_proj = nn.Linear(spec.hidden_size, 2 * width, bias=mixer.proj_bias)
        self.conv = CausalConv(width, mixer.conv_kernel, bias=mixer.conv_bias)
        self.x_proj = nn.Linear(width, rank + 2 * state, bias=False)
        self.dt_norm = self.b_norm = self.c_norm = None
        if mixer.inner_norms != "none":
            eps = spec.norm.eps if mixer.norm_eps is None else mixer.norm_eps
            norm = Norm(weight=mixer.inner_norms == "weighted", eps=eps)
            self.dt_norm, self.b_norm, self.c_norm = (NormLayer(size, norm) for size in (rank, state, state))
        self.dt_proj = nn.Linear(rank, width, bias=True)
        self.A_log = nn.Parameter(torch.empty(width, state))
        self.D = nn.Parameter(torch.empty(width))
        self.out_proj = nn.Linear(width, spec.hidden_size, bias=mixer.proj_bias)

    def reset_parameters(self) -> None:
        """Set A to −1 … −N in each channel and D to 1, and draw time steps from the range TIME_STEPS (S4D-real)."""
        mixer = self.mixer
        with torch.no_grad():
            rows = torch.arange(1, mixer.state_size + 1, dtype=torch.float32, device=self.A_log.device)
            self.A_log.copy_(rows.log().expand_as(self.A_log))
            self.D.fill_(1.0)
            self.dt_proj.weight.uniform_(-(mixer.time_step_rank**-0.5), mixer.time_step_rank**-0.5)
            _draw_time_steps(self.dt_proj.bias)

    def forward(self, x: Tensor, step: Step, state: RecurrentState | None, shared: object) -> tuple[Tensor, object]:
        """Return the output [B, S, D] of the mixer for x [B, S, D], and `shared` unchanged."""
        mixer, valid = self.mixer, step.valid
        inner, gate = self.in_proj(x).chunk(2, dim=-1)
        inner = F.silu(self.conv(inner, state, valid))
        packed = self.x_proj(inner)
        dt, b, c = packed.split((mixer.time_step_rank, mixer.state_size, mixer.state_size), dim=-1)
        if self.dt_norm is not None and self.b_norm is not None and self.c_norm is not None:
            norms = zip((self.dt_norm, self.b_norm, self.c_norm), (dt, b, c), strict=True)
            dt, b, c = (norm(vector, step.implementation) for norm, vector in norms)
        dt = zero_padding(F.softplus(self.dt_proj(dt).float()), valid)
        y, last = self._scan(inner.float(), dt, b.float(), c.float(), None if state is None else state.state)
        if state is not None:
            state.state = last
        return self.out_proj((y * F.silu(gate.float())).to(x.dtype)), shared

    def _scan(self, u: Tensor, dt: Tensor, b: Tensor, c: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the outputs y [B, S, I] and the last state h [B, I, N].

        Shapes: u and dt [B, S, I], b and c [B, S, N], start [B, I, N]. None for `start`: the first state is zero.
        """
        rates = -self.A_log.float().exp()
        h = u.new_zeros(u.shape[0], *rates.shape) if start is None else start
        outputs = []
        for first in range(0, u.shape[1], SEGMENT):
            segment = slice(first, first + SEGMENT)
            decay = torch.exp(dt[:, segment, :, None] * rates)
            inputs = (dt[:, segment] * u[:, segment])[..., None] * b[:, segment, None, :]
            states = elementwise_scan(decay, inputs, h)
            h = states[:, -1]
            outputs.append((states @ c[:, segment, :, None]).squeeze(-1))
        return torch.cat(outputs, dim=1) + self.D.float() * u, h


class Mamba2Layer(nn.Module):
    """Mamba-2. It has one decay per head, so that matrix products can compute chunks of the sequence."""

    def __init__(self, spec: ModelSpec, mixer: Mamba2) -> None:
        super().__init__()
        self.mixer = mixer
        width, shared = mixer.intermediate_size, 2 * mixer.n_groups * mixer.state_size
        self.in_proj = nn.Linear(spec.hidden_size, 2 * width + shared + mixer.num_heads, bias=mixer.proj_bias)
        self.conv = CausalConv(width + shared, mixer.conv_kernel, bias=mixer.conv_bias)
        self.A_log = nn.Parameter(torch.empty(mixer.num_heads))
        self.D = nn.Parameter(torch.empty(mixer.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(mixer.num_heads))
        self.norm = GatedNorm(mixer, spec.norm.eps) if mixer.gated_norm else None
        out_bias = mixer.proj_bias if mixer.out_proj_bias is None else mixer.out_proj_bias
        self.out_proj = nn.Linear(width, spec.hidden_size, bias=out_bias)

    def reset_parameters(self) -> None:
        """Set A to −1 … −H and D to 1, and draw time steps from the range TIME_STEPS."""
        with torch.no_grad():
            heads = torch.arange(1, self.mixer.num_heads + 1, dtype=torch.float32, device=self.A_log.device)
            self.A_log.copy_(heads.log())
            self.D.fill_(1.0)
            _draw_time_steps(self.dt_bias)

    def forward(self, x: Tensor, step: Step, state: RecurrentState | None, shared: object) -> tuple[Tensor, object]:
        """Return the output [B, S, D] of the mixer for x [B, S, D], and `shared` unchanged."""
        mixer, valid = self.mixer, step.valid
        width, grouped = mixer.intermediate_size, mixer.n_groups * mixer.state_size
        packed = self.in_proj(x)
        if mixer.projection_scales:
            widths = (width, width, grouped, grouped, mixer.num_heads)
            parts = zip(packed.split(widths, dim=-1), mixer.projection_scales, strict=True)
            packed = torch.cat([times(part, scale) for part, scale in parts], dim=-1)
        gate, inner, dt = packed.split((width, width + 2 * grouped, mixer.num_heads), dim=-1)
        inner = F.silu(self.conv(inner, state, valid)).float()
        u, b, c = inner.split((width, grouped, grouped), dim=-1)
        u = u.unflatten(-1, (mixer.num_heads, mixer.head_dim))
        b, c = (shape.unflatten(-1, (mixer.n_groups, mixer.state_size)) for shape in (b, c))
        dt = F.softplus(dt.float() + self.dt_bias.float()).clamp(mixer.time_step_min, mixer.time_step_max)
        dt = zero_padding(dt, valid)
        start = None if state is None else state.state
        if start is None:
            start = u.new_zeros(u.shape[0], mixer.num_heads, mixer.state_size, mixer.head_dim)
        decay = -self.A_log.float().exp() * dt
        y, last = matrix_scan(c, b, dt[..., None] * u, decay, start, chunk=mixer.chunk_size)
        if state is not None:
            state.state = last
        y = (y + self.D.float()[:, None] * u).flatten(2)
        y = y * F.silu(gate.float()) if self.norm is None else self.norm(y, gate.float())
        return self.out_proj(y.to(x.dtype)), shared


class GatedNorm(nn.Module):
    """A gate and an RMSNorm. The inner width is split into G groups, and each group has a norm of its own.

    With `norm_before_gate`, the norm comes before the gate. Otherwise, it comes after the gate.
    """

    def __init__(self, mixer: Mamba2, eps: float) -> None:
        super().__init__()
        self.groups, self.eps, self.before_gate = mixer.n_groups, eps, mixer.norm_before_gate
        self.weight = nn.Parameter(torch.empty(mixer.intermediate_size))

    def reset_parameters(self) -> None:
        """Set all weights to 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Apply the norm and the gate to x [B, S, I], with a gate [B, S, I]. All tensors are fp32."""
        x = x if self.before_gate else x * F.silu(gate)
        groups = x.unflatten(-1, (self.groups, -1))
        x = F.rms_norm(groups, groups.shape[-1:], None, self.eps).flatten(-2) * self.weight.float()
        return x * F.silu(gate) if self.before_gate else x


def _draw_time_steps(bias: Tensor) -> None:
    """Set biases so that softplus(bias), the time step, lies in the range TIME_STEPS, uniform in its logarithm."""
    low, high = (math.log(limit) for limit in TIME_STEPS)
    with torch.no_grad():
        steps = torch.exp(torch.rand(bias.shape, dtype=torch.float32, device=bias.device) * (high - low) + low)
        bias.copy_(inverse_softplus(steps.clamp(min=1e-4)))
