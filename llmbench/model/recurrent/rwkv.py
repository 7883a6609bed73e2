"""RWKV-4's time mixing (arXiv 2305.13048), and the shift that gives a token the vector of the token before it.

Dimensions: B batch, S length, D hidden size, W channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmbench.model.recurrent.state import RecurrentState
from llmbench.model.step import Step
from llmbench.spec.mixer import RWKV
from llmbench.spec.model import ModelSpec

EMPTY = -1e38
"""The largest exponent before the first token. It stands for minus infinity."""


def shifted(x: Tensor, step: Step, state: RecurrentState | None, place: int) -> Tensor:
    """Return, for each token of x [B, S, D], the vector of the token before it, and store the last vector in `state`.

    - `place`: the index of the vector in the state. The vector before the first token is zero.
    """
    before = torch.zeros_like(x[:, :1])
    if state is not None and state.stream is not None:
        before = state.stream[:, place : place + 1].to(x.dtype)
    both = torch.cat((before, x), dim=1)
    if state is not None and state.stream is not None:
        last = both[:, -1] if step.valid is None else both[torch.arange(len(both)), step.valid.sum(1)]
        state.stream[:, place] = last.to(state.stream.dtype)
    return both[:, :-1]


def mixed(x: Tensor, before: Tensor, share: Tensor) -> Tensor:
    """Return share · x + (1 − share) · before, with one share per channel [D]."""
    return x * share + before * (1 - share)


class RWKVLayer(nn.Module):
    """Time mixing: σ(r) times an average of the values v of all tokens up to t, per channel.

    The weight of a token s < t is exp(k_s − (t − 1 − s) · exp(decay)). The weight of t itself is exp(first + k_t). k, v
    and r are projections of the token mixed with the token before it.
    """

    def __init__(self, spec: ModelSpec, mixer: RWKV) -> None:
        super().__init__()
        hidden, width = spec.hidden_size, mixer.width
        self.time_mix_key, self.time_mix_value, self.time_mix_receptance = (
            nn.Parameter(torch.empty(hidden)) for _ in range(3)
        )
        self.time_decay = nn.Parameter(torch.empty(width))
        self.time_first = nn.Parameter(torch.empty(width))
        self.k_proj = nn.Linear(hidden, width, bias=False)
        self.v_proj = nn.Linear(hidden, width, bias=False)
        self.r_proj = nn.Linear(hidden, width, bias=False)
        self.out_proj = nn.Linear(width, hidden, bias=False)

    def reset_parameters(self) -> None:
        """Mix both tokens equally, and spread the decays over the channels (RWKV, appendix E)."""
        with torch.no_grad():
            for share in (self.time_mix_key, self.time_mix_value, self.time_mix_receptance):
                share.fill_(0.5)
            self.time_decay.copy_(torch.linspace(-5.0, 3.0, len(self.time_decay)))
            self.time_first.fill_(-1.2039728)  # ln 0.3

    def forward(self, x: Tensor, step: Step, state: RecurrentState | None, shared: object) -> tuple[Tensor, object]:
        """Return the output [B, S, D] of time mixing for x [B, S, D], and `shared` unchanged."""
        before = shifted(x, step, state, 0)
        k = self.k_proj(mixed(x, before, self.time_mix_key))
        v = self.v_proj(mixed(x, before, self.time_mix_value))
        r = torch.sigmoid(self.r_proj(mixed(x, before, self.time_mix_receptance)))
        return self.out_proj(r * self.average(k.float(), v.float(), step.valid, state).to(x.dtype)), shared

    def average(self, k: Tensor, v: Tensor, valid: Tensor | None, state: RecurrentState | None) -> Tensor:
        """Return the averages [B, S, W] of the values v [B, S, W] with the exponents k [B, S, W].

        The state has three numbers per channel: numerator and denominator, both divided by exp(largest), and the
        largest exponent. A state of zeros is the state before the first token.
        """
        decay, first = -torch.exp(self.time_decay.float()), self.time_first.float()
        start = k.new_zeros(k.shape[0], 3, k.shape[2])
        if state is not None and state.state is not None:
            start = state.state
        numerator, denominator, largest = start.unbind(1)
        largest = torch.where(denominator == 0, EMPTY, largest)
        outputs = []
        for t in range(k.shape[1]):
            now, value = k[:, t], v[:, t]
            top = torch.maximum(largest, now + first)
            old, new = torch.exp(largest - top), torch.exp(now + first - top)
            outputs.append((old * numerator + new * value) / (old * denominator + new))
            top = torch.maximum(largest + decay, now)
            old, new = torch.exp(largest + decay - top), torch.exp(now - top)
            after = old * numerator + new * value, old * denominator + new, top
            if valid is not None:  # padding does not change the state
                kept = zip(after, (numerator, denominator, largest), strict=True)
                after = tuple(torch.where(valid[:, t, None], ours, theirs) for ours, theirs in kept)  # type: ignore[assignment]
            numerator, denominator, largest = after
        if state is not None:
            largest = torch.where(denominator == 0, 0.0, largest)  # a row of padding alone leaves zeros
            state.state = torch.stack((numerator, denominator, largest), dim=1)
        return torch.stack(outputs, dim=1)
