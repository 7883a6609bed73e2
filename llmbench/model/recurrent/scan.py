"""Linear recurrences over a sequence, in plain torch and fp32. Every mixer with a state of fixed size uses them.

Dimensions: B batch, S length, Q chunk length, H heads, N key (state) width, P value width.

- Elementwise states (Mamba, RG-LRU): h_t = a_t · h_{t-1} + u_t.
- Matrix states with one decay per head (Mamba-2, lightning attention): S_t = a_t · S_{t-1} + k_tᵀ v_t, y_t = q_t S_t.
- The gated delta rule (arXiv 2412.06464): S_t = a_t · S_{t-1} + β_t · k_tᵀ (v_t − k_t (a_t · S_{t-1})), y_t = q_t S_t.
- The same rule with one decay per channel of the keys (Kimi delta attention, arXiv 2510.26692).

Decays are computed from their logarithms, and all exponents are ≤ 0, so that nothing overflows. Padding must not change
the state: for a padded token, the log-decay is 0, and u, k or β is 0.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def elementwise_scan(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    """Return all states h_t [B, S, ...] of h_t = decay_t · h_{t-1} + inputs_t. The first state h_0 is `start` [B, ...].

    The three tensors have the same dtype.
    """
    states: Tensor = _ElementwiseScan.apply(decay, inputs, start)
    return states


class _ElementwiseScan(torch.autograd.Function):
    """The scan with a backward pass of its own. Autograd would save four more tensors with the size of all states.

    Let g_t be the gradient of h_t, with its effect on later states. Then g_t = (gradient of the output h_t) +
    decay_{t+1} · g_{t+1}, which is a scan from the end. The gradient of decay_t is g_t · h_{t-1}, that of inputs_t is
    g_t, and that of h_0 is decay_1 · g_1.
    """

    @staticmethod
    def forward(ctx: Any, decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
        states = _states(decay, inputs, start)
        ctx.save_for_backward(decay, states, start)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        decay, states, start = ctx.saved_tensors
        later = torch.cat((decay[:, 1:], torch.zeros_like(decay[:, :1])), dim=1)
        through = _states(later.flip(1), gradient.flip(1), torch.zeros_like(start)).flip(1)
        before = torch.cat((start[:, None], states[:, :-1]), dim=1)
        return through * before, through, decay[:, 0] * through[:, 0]


def _states(decay: Tensor, inputs: Tensor, start: Tensor) -> Tensor:
    """Return the states of `elementwise_scan`.

    The sequence is split into about √S rows. First, all rows are computed in parallel, as if each row started from a
    state of zero. Then the last state of the previous row, multiplied by the decays since then, is added to each state
    of a row. This takes 2·√S steps instead of S.
    """
    length = inputs.shape[1]
    width = math.isqrt(length - 1) + 1
    rows = -(-length // width)
    decay = _chunked(decay, rows, width, 1.0)
    inputs = _chunked(inputs, rows, width, 0.0)
    local, products = [inputs[:, :, 0]], [decay[:, :, 0]]
    for step in range(1, width):
        local.append(decay[:, :, step] * local[-1] + inputs[:, :, step])
        products.append(decay[:, :, step] * products[-1])
    carried = [start]
    for row in range(rows - 1):
        carried.append(products[-1][:, row] * carried[-1] + local[-1][:, row])
    before = torch.stack(carried, dim=1).unsqueeze(2)
    out = torch.stack(local, dim=2) + torch.stack(products, dim=2) * before
    return out.flatten(1, 2)[:, :length]


def _chunked(x: Tensor, rows: int, width: int, filler: float) -> Tensor:
    """Split x [B, S, ...] into [B, rows, width, ...], padded with `filler` at the end."""
    missing = rows * width - x.shape[1]
    if missing:
        x = torch.cat((x, x.new_full((x.shape[0], missing, *x.shape[2:]), filler)), dim=1)
    return x.unflatten(1, (rows, width))


def matrix_scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, *, chunk: int, beta: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the fp32 outputs y [B, S, H, P] and the last state [B, H, N, P] of a recurrence that starts from `state`.

    Shapes: q and k [B, S, G, N] with G groups of heads, v [B, S, H, P], log_decay and beta [B, S, H]. With `beta`, the
    recurrence is the gated delta rule. Each chunk of `chunk` tokens is computed with matrix products. Only the state
    passes from one chunk to the next.
    """
    q, k, v, log_decay = (x.float().transpose(1, 2) for x in (q, k, v, log_decay))
    if beta is not None:
        beta = beta.float().transpose(1, 2)
    outputs = []
    for start in range(0, q.shape[2], chunk):
        part = slice(start, min(start + chunk, q.shape[2]))
        rate = None if beta is None else beta[:, :, part]
        y, state = _chunk(q[:, :, part], k[:, :, part], v[:, :, part], log_decay[:, :, part], state, rate)
        outputs.append(y)
    return torch.cat(outputs, dim=2).transpose(1, 2), state


def _chunk(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, beta: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state of one chunk.

    Shapes: q and k [B, G, Q, N], v [B, H, Q, P], log_decay and beta [B, H, Q], state [B, H, N, P].

    Let c_t be the sum of the log-decays up to t, and D_ts = exp(c_t − c_s) for s ≤ t. Then y = (q kᵀ ∘ D) v + exp(c) q
    S, and S' = exp(c_Q) S + (exp(c_Q − c) k)ᵀ v. The delta rule replaces v by w = β (v − k S_{t−1}). w is the solution
    of (I + tril(β k kᵀ ∘ D, −1)) w = β (v − exp(c) k S).
    """
    length, repeats = q.shape[2], v.shape[1] // k.shape[1]
    total = log_decay.cumsum(dim=-1)
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(~causal, -math.inf).exp()
    scores = (q @ k.transpose(-1, -2)).repeat_interleave(repeats, dim=1) * decay
    q, k = q.repeat_interleave(repeats, dim=1), k.repeat_interleave(repeats, dim=1)
    since = total.exp()[..., None]
    if beta is not None:
        similarity = (k @ k.transpose(-1, -2)) * decay * beta[..., None]
        right = beta[..., None] * (v - since * (k @ state))
        v = torch.linalg.solve_triangular(similarity, right, upper=False, unitriangular=True)
    y = scores @ v + since * (q @ state)
    until_end = (total[..., -1:] - total).exp()[..., None]
    state = since[..., -1:, :] * state + (k * until_end).transpose(-1, -2) @ v
    return y, state


def channel_scan(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor, *, chunk: int
) -> tuple[Tensor, Tensor]:
    """Return the fp32 outputs y [B, S, H, P] and the last state [B, H, N, P] of the delta rule with channel decays.

    Shapes: q, k and log_decay [B, S, H, N], v [B, S, H, P], beta [B, S, H]. A chunk of Q tokens needs Q² · N elements
    per head, because the decay between two tokens differs per channel.
    """
    q, k, v, log_decay, beta = (x.float().transpose(1, 2) for x in (q, k, v, log_decay, beta))
    outputs = []
    for start in range(0, q.shape[2], chunk):
        part = slice(start, min(start + chunk, q.shape[2]))
        y, state = _channel_chunk(
            q[:, :, part], k[:, :, part], v[:, :, part], log_decay[:, :, part], beta[:, :, part], state
        )
        outputs.append(y)
    return torch.cat(outputs, dim=2).transpose(1, 2), state


def _channel_chunk(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the outputs and the last state of one chunk. The equations are those of `_chunk`, per channel."""
    length = q.shape[2]
    total = log_decay.cumsum(dim=2)
    causal = torch.ones(length, length, dtype=torch.bool, device=q.device).tril()[..., None]
    decay = (total[:, :, :, None] - total[:, :, None]).masked_fill(~causal, -math.inf).exp()  # [B, H, Q, Q, N]
    keys = k[:, :, None] * decay
    scores, similarity = ((x[:, :, :, None] * keys).sum(-1) for x in (q, k))
    since = total.exp()
    right = beta[..., None] * (v - (since * k) @ state)
    w = torch.linalg.solve_triangular(similarity * beta[..., None], right, upper=False, unitriangular=True)
    y = scores @ w + (since * q) @ state
    until_end = (total[:, :, -1:] - total).exp()
    state = since[:, :, -1, :, None] * state + (k * until_end).transpose(-1, -2) @ w
    return y, state


def l2_normalised(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Scale vectors to unit length in fp32: x / √(Σ x² + eps) over the last dimension."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + eps)


def inverse_softplus(x: Tensor) -> Tensor:
    """Return the number y for which softplus(y) = x, for x > 0."""
    return x + torch.log(-torch.expm1(-x))


def zero_padding(x: Tensor, valid: Tensor | None) -> Tensor:
    """Set x [B, S, ...] to zero for padding. `valid` [B, S] is false for padding. None: no token is padding."""
    return x if valid is None else x * valid.view(*valid.shape, *[1] * (x.dim() - 2))


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a causal depthwise convolution, [B, k − 1 + S, C] to [B, S, C].

    The first k − 1 tokens of x are the inputs before the S tokens: zeros, or the last inputs of the previous pass.
    """
    out = F.conv1d(x.transpose(1, 2), weight, bias, groups=weight.shape[0])
    return out.transpose(1, 2)
