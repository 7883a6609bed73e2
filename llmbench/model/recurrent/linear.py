"""Linear attention: the gated delta net (arXiv 2412.06464), Kimi delta attention and lightning attention.

Dimensions: B batch, S length, D hidden size, K key heads, H value heads, N key width, P value width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmbench.model.norms import NormLayer, times
from llmbench.model.recurrent.scan import channel_scan, l2_normalised, matrix_scan, zero_padding
from llmbench.model.recurrent.state import CausalConv, RecurrentState
from llmbench.model.step import Step
from llmbench.spec.mixer import GatedDeltaNet, KimiDelta, LightningAttention
from llmbench.spec.model import ModelSpec, Norm

DELTA_CHUNK = 64
"""Tokens per chunk of the delta rule. One triangular system is solved per chunk."""

CHANNEL_CHUNK = 16
"""Tokens per chunk of the delta rule with one decay per channel. The memory grows with the square of this number."""


class GatedDeltaNetLayer(nn.Module):
    """The gated delta net: S_t = a_t S_{t-1} + β_t k_tᵀ (v_t − k_t a_t S_{t-1}), y_t = q_t S_t.

    Queries and keys have unit length, and queries are multiplied by N ** −0.5. The decay is a_t = exp(−exp(A) ·
    softplus(a_proj(x) + bias)), with the weights A and bias of each head. The rate is β = sigmoid(b_proj(x)), or twice
    this value if negative eigenvalues are allowed. The output of each head passes through a norm, then through a gate.
    """

    def __init__(self, spec: ModelSpec, mixer: GatedDeltaNet) -> None:
        super().__init__()
        self.mixer = mixer
        hidden = spec.hidden_size
        keys, values = mixer.num_key_heads * mixer.key_head_dim, mixer.num_value_heads * mixer.value_head_dim
        self.q_proj = nn.Linear(hidden, keys, bias=False)
        self.k_proj = nn.Linear(hidden, keys, bias=False)
        self.v_proj = nn.Linear(hidden, values, bias=False)
        self.g_proj = nn.Linear(hidden, values, bias=False) if mixer.output_gate else None
        self.a_proj = nn.Linear(hidden, mixer.num_value_heads, bias=False)
        self.b_proj = nn.Linear(hidden, mixer.num_value_heads, bias=False)
        self.conv = CausalConv(2 * keys + values, mixer.conv_kernel, bias=False)
        self.A_log = nn.Parameter(torch.empty(mixer.num_value_heads))
        self.dt_bias = nn.Parameter(torch.empty(mixer.num_value_heads))
        eps = spec.norm.eps if mixer.norm_eps is None else mixer.norm_eps
        self.norm = NormLayer(mixer.value_head_dim, Norm(eps=eps))
        self.out_proj = nn.Linear(values, hidden, bias=False)

    def reset_parameters(self) -> None:
        """Draw exp(A) uniformly from (0.01, 16), and set the time-step bias to 1."""
        with torch.no_grad():
            self.A_log.copy_(torch.empty_like(self.A_log).uniform_(0.01, 16).log())
            self.dt_bias.fill_(1.0)

    def forward(self, x: Tensor, step: Step, state: RecurrentState | None, shared: object) -> tuple[Tensor, object]:
        """Return the output [B, S, D] of the delta net for x [B, S, D], and `shared` unchanged."""
        mixer, valid = self.mixer, step.valid
        keys, values = mixer.num_key_heads * mixer.key_head_dim, mixer.num_value_heads * mixer.value_head_dim
        packed = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)
        packed = F.silu(self.conv(packed, state, valid)).float()
        q, k, v = packed.split((keys, keys, values), dim=-1)
        q, k = (l2_normalised(part.unflatten(-1, (mixer.num_key_heads, mixer.key_head_dim))) for part in (q, k))
        v = v.unflatten(-1, (mixer.num_value_heads, mixer.value_head_dim))
        time_step = self.a_proj(x).float() + self.dt_bias.float()
        # logaddexp computes softplus(x) = log(1 + e^x). F.softplus is not used, because torch.compile fails on the
        # strides in its backward pass.
        decay = -self.A_log.float().exp() * torch.logaddexp(time_step, time_step.new_zeros(()))
        rate = times(self.b_proj(x).float().sigmoid(), 2.0 if mixer.negative_eigenvalues else 1.0)
        decay, rate = zero_padding(decay, valid), zero_padding(rate, valid)
        start = None if state is None else state.state
        if start is None:
            start = v.new_zeros(v.shape[0], mixer.num_value_heads, mixer.key_head_dim, mixer.value_head_dim)
        scale = mixer.key_head_dim**-0.5
        y, last = matrix_scan(q * scale, k, v, decay, start, chunk=DELTA_CHUNK, beta=rate)
        if state is not None:
            state.state = last
        y = self.norm(y.to(x.dtype), step.implementation)
        if self.g_proj is not None:
            y = y * F.silu(self.g_proj(x).float().unflatten(-1, y.shape[2:]))
        return self.out_proj(y.flatten(2).to(x.dtype)), shared


class KimiDeltaLayer(nn.Module):
    """Kimi delta attention (arXiv 2510.26692): the gated delta rule with one decay per channel of the keys.

    The decay is a_t = exp(−exp(A) · softplus(f(x) + bias)), with A per head and the bias per channel. f and the output
    gate are products of two low-rank matrices, or full matrices. The output of each head passes through a norm, then
    through a sigmoid gate.
    """

    def __init__(self, spec: ModelSpec, mixer: KimiDelta) -> None:
        super().__init__()
        self.mixer = mixer
        hidden, width = spec.hidden_size, mixer.num_heads * mixer.head_dim
        self.q_proj = nn.Linear(hidden, width, bias=False)
        self.k_proj = nn.Linear(hidden, width, bias=False)
        self.v_proj = nn.Linear(hidden, width, bias=False)
        self.conv = CausalConv(3 * width, mixer.conv_kernel, bias=False)
        for letter, full_rank in (("f", mixer.full_rank_decay), ("g", mixer.full_rank_gate)):
            if full_rank:
                self.add_module(f"{letter}_proj", nn.Linear(hidden, width, bias=False))
            else:
                self.add_module(f"{letter}_a_proj", nn.Linear(hidden, mixer.head_dim, bias=False))
                self.add_module(f"{letter}_b_proj", nn.Linear(mixer.head_dim, width, bias=False))
        self.b_proj = nn.Linear(hidden, mixer.num_heads, bias=False)
        self.A_log = nn.Parameter(torch.empty(mixer.num_heads))
        self.dt_bias = nn.Parameter(torch.empty(width))
        self.norm = NormLayer(mixer.head_dim, Norm(eps=spec.norm.eps))
        self.out_proj = nn.Linear(width, hidden, bias=False)

    def reset_parameters(self) -> None:
        """Draw exp(A) uniformly from (1, 16), and set the bias of the decay to 1."""
        with torch.no_grad():
            self.A_log.copy_(torch.empty_like(self.A_log).uniform_(1, 16).log())
            self.dt_bias.fill_(1.0)

    def gate(self, letter: str, x: Tensor) -> Tensor:
        """Project x [B, S, D] with the matrices of the decay (f) or of the output gate (g): [B, S, H, N]."""
        full_rank = self.mixer.full_rank_decay if letter == "f" else self.mixer.full_rank_gate
        names = [f"{letter}_proj"] if full_rank else [f"{letter}_a_proj", f"{letter}_b_proj"]
        for name in names:
            x = self.get_submodule(name)(x)
        return x.unflatten(-1, (self.mixer.num_heads, self.mixer.head_dim))

    def forward(self, x: Tensor, step: Step, state: RecurrentState | None, shared: object) -> tuple[Tensor, object]:
        """Return the output [B, S, D] of the delta rule for x [B, S, D], and `shared` unchanged."""
        heads, head_dim = self.mixer.num_heads, self.mixer.head_dim
        packed = torch.cat((self.q_proj(x), self.k_proj(x), self.v_proj(x)), dim=-1)
        packed = F.silu(self.conv(packed, state, step.valid)).float()
        q, k, v = (part.unflatten(-1, (heads, head_dim)) for part in packed.chunk(3, dim=-1))
        q, k = l2_normalised(q) * head_dim**-0.5, l2_normalised(k)
        time_step = self.gate("f", x).float() + self.dt_bias.float().view(heads, head_dim)
        decay = -self.A_log.float().exp()[:, None] * torch.logaddexp(time_step, time_step.new_zeros(()))
        rate = self.b_proj(x).float().sigmoid()
        start = None if state is None else state.state
        if start is None:
            start = v.new_zeros(v.shape[0], heads, head_dim, head_dim)
        decay, rate = zero_padding(decay, step.valid), zero_padding(rate, step.valid)
        y, last = channel_scan(q, k, v, decay, rate, start, chunk=CHANNEL_CHUNK)
        if state is not None:
            state.state = last
        y = self.norm(y.to(x.dtype), step.implementation) * torch.sigmoid(self.gate("g", x).float())
        return self.out_proj(y.flatten(2).to(x.dtype)), shared


class LightningLayer(nn.Module):
    """Lightning attention: S_t = a S_{t-1} + k_tᵀ v_t, y_t = q_t S_t.

    Each head has a constant decay a. In later layers, a is closer to 1. q, k and v pass through a SiLU. The output
    passes through a norm over all heads, and through a sigmoid gate.
    """

    def __init__(self, spec: ModelSpec, mixer: LightningAttention, *, index: int) -> None:
        super().__init__()
        self.mixer = mixer
        self.depth = 1 - index / (spec.num_hidden_layers - 1 + 1e-5) + 1e-5
        width = mixer.num_attention_heads * mixer.head_dim
        self.qkv_proj = nn.Linear(spec.hidden_size, 3 * width, bias=False)
        self.g_proj = nn.Linear(spec.hidden_size, width, bias=False)
        self.norm = NormLayer(width, Norm(eps=1e-6))  # this norm does not use the eps of the model's other norms
        self.out_proj = nn.Linear(width, spec.hidden_size, bias=False)

    def slopes(self, device: torch.device) -> Tensor:
        """Return the decay rate −ln a of each head i = 1 … H: 2 ** (−8 i / H) times a factor.

        The factor is about 1 in the first layer, and is smaller in later layers.
        """
        heads = self.mixer.num_attention_heads
        return 2.0 ** (-8.0 / heads * torch.arange(1, heads + 1, dtype=torch.float32, device=device)) * self.depth

    def forward(self, x: Tensor, step: Step, state: RecurrentState | None, shared: object) -> tuple[Tensor, object]:
        """Return the output [B, S, D] of lightning attention for x [B, S, D], and `shared` unchanged."""
        mixer = self.mixer
        packed = F.silu(self.qkv_proj(x)).unflatten(-1, (mixer.num_attention_heads, 3 * mixer.head_dim)).float()
        q, k, v = packed.chunk(3, dim=-1)
        decay = zero_padding(-self.slopes(x.device).expand(*x.shape[:2], -1), step.valid)
        start = None if state is None else state.state
        if start is None:
            start = v.new_zeros(v.shape[0], mixer.num_attention_heads, mixer.head_dim, mixer.head_dim)
        y, last = matrix_scan(q, zero_padding(k, step.valid), v, decay, start, chunk=mixer.block_size)
        if state is not None:
            state.state = last
        y = self.norm(y.flatten(2).to(x.dtype), step.implementation)
        return self.out_proj(torch.sigmoid(self.g_proj(x)) * y), shared
