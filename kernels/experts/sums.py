"""The sums of a mixture of experts: over a token's experts, over a pair's columns, over an expert's rows.

Memory bandwidth limits all of them, and none uses atomic additions. mixture.py has the whole mixture.

Shapes: t tokens, k choices per token, R = t·k pairs, D hidden, F intermediate, E experts. A pair is token · k + slot;
`order` [R] has the pair of each of the rows sorted by expert (sorting.py).
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.launching import Config, empty, launch
from llmbench.kernels.numeric import narrowed

__all__ = ["bias_gradient", "combine_rows", "pair_gradient"]


# == Kernels ==


@triton.jit
def combine(rows, instead, weights, chosen, out, hidden, experts, K: tl.constexpr, BLOCK: tl.constexpr):
    """One program computes BLOCK columns of one token: the sum of its K rows of `rows` [t·k, D].

    A zero-computation expert has no row in `rows`. Such an expert adds its weight times the token's row of `instead`
    [t, D].
    """
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    acc = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(K):
        pair = token * K + slot
        # Either the pair has a row in `rows`, or its expert is a zero-computation expert. So one of the two loads below
        # reads nothing.
        stored = tl.where(tl.load(chosen + pair) < experts, hidden, 0)
        acc += tl.load(rows + pair * hidden + column, mask=column < stored, other=0.0).to(tl.float32)
        token_row = tl.load(instead + token * hidden + column, mask=column < hidden - stored, other=0.0).to(tl.float32)
        acc += token_row * tl.load(weights + pair).to(tl.float32)
    tl.store(out + token * hidden + column, narrowed(acc, out.dtype.element_ty), mask=inside)


@triton.jit
def pair_weight_gradient(
    sums, dout, x, chosen, down_bias, dweights, pairs, columns, hidden, experts,
    CHOICES: tl.constexpr, PAIRS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program computes dw of PAIRS pairs: the sums of dh·h over all columns, plus dout·down_bias.

    For zero-computation experts, dw is dout·x. Only the products with dout read rows of D elements."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    live = pair < pairs
    expert = tl.load(chosen + pair, mask=live, other=0).to(tl.int64)
    real = expert < experts
    total = tl.zeros([PAIRS], tl.float32)
    for i in range(columns):
        total += tl.load(sums + pair + tl.cast(i, tl.int64) * pairs, mask=live & real, other=0.0)
    zero_expert = live & (real == 0)
    needed = tl.max(zero_expert.to(tl.int32), axis=0)
    if down_bias is not None:
        needed = 1
    token = (pair // CHOICES).to(tl.int64)[:, None] * hidden
    for start in range(0, needed * hidden, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = column < hidden
        factor_row = tl.load(x + token + column, mask=zero_expert[:, None] & inside, other=0.0).to(tl.float32)
        reads = zero_expert
        if down_bias is not None:
            at = down_bias + expert[:, None] * hidden + column
            factor_row += tl.load(at, mask=(live & real)[:, None] & inside, other=0.0).to(tl.float32)
            reads = live
        dy = tl.load(dout + token + column, mask=reads[:, None] & inside, other=0.0).to(tl.float32)
        total += tl.sum(dy * factor_row, axis=1)
    tl.store(dweights + pair, narrowed(total, dweights.dtype.element_ty), mask=live)


@triton.jit
def sum_rows(
    p,
    order,
    weights,
    offsets,
    out,
    width,
    CHOICES: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program computes BLOCK columns of out [E, width], the sum of an expert's rows.

    With `order`, the sum is over the rows of the expert's tokens, times their weights.
    """
    expert = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (column < width)[None, :]
    end = tl.load(offsets + expert + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(tl.load(offsets + expert), end, ROWS):
        row = start + tl.arange(0, ROWS)
        live = row < end
        factor = live.to(tl.float32)
        if order is not None:
            pair = tl.load(order + row, mask=live, other=0)
            factor = tl.load(weights + pair, mask=live, other=0.0).to(tl.float32)
            row = pair // CHOICES
        at = p + row.to(tl.int64)[:, None] * width + column[None, :]
        values = tl.load(at, mask=live[:, None] & inside, other=0.0).to(tl.float32)
        total += tl.sum(values * factor[:, None], axis=0)
    tl.store(out + expert.to(tl.int64) * width + column, narrowed(total, out.dtype.element_ty), mask=column < width)


# == Launchers ==


def combine_rows(rows: Tensor, instead: Tensor, weights: Tensor, chosen: Tensor, experts: int) -> Tensor:
    """Return the sum of the k rows of each token, [t, D], from `rows` [t·k, D]."""
    tokens, hidden = instead.shape
    out = empty(tokens, hidden, like=instead)
    block = max(128, min(1024, triton.next_power_of_2(hidden)))
    note = "8 elements per thread and row: one 16-byte load for each of the k rows in flight"
    config = Config(BLOCK=block, num_warps=max(1, block // 256), note=note)
    grid = tokens, triton.cdiv(hidden, block)
    launch(combine, grid, config, rows, instead, weights, chosen, out, hidden, experts, K=chosen.shape[1])
    return out


def pair_gradient(
    sums: Tensor, dout: Tensor, x: Tensor, weights: Tensor, chosen: Tensor, down_bias: Tensor | None, experts: int
) -> Tensor:
    """Return dw [t, k], the gradient of the router weights."""
    (columns, pairs), choices, hidden = sums.shape, chosen.shape[1], x.shape[1]
    dweights = empty(*weights.shape, like=weights)
    config = Config(
        PAIRS=32,
        BLOCK=128,
        num_warps=4,
        note="32 pairs read a whole line of `sums`; 32 values per thread from rows of D elements",
    )
    arguments = sums, dout, x, chosen, down_bias, dweights, pairs, columns, hidden, experts
    launch(pair_weight_gradient, (triton.cdiv(pairs, 32),), config, *arguments, CHOICES=choices)
    return dweights


def bias_gradient(
    p: Tensor, offsets: Tensor, order: Tensor | None = None, weights: Tensor | None = None, choices: int = 1
) -> Tensor:
    """Return the sum of the rows of each expert, [E, N], from p [R, N].

    With `order` and `weights`, the sum is over the rows of the expert's tokens in p [t, N], times their weights.
    """
    experts, width = len(offsets) - 1, p.shape[1]
    out = empty(experts, width, like=p)
    config = Config(
        ROWS=64, BLOCK=128, num_warps=4, num_stages=3, note="64 rows of 256 B per iteration, the next 64 rows in flight"
    )
    grid = experts, triton.cdiv(width, 128)
    launch(sum_rows, grid, config, p, order, weights, offsets, out, width, CHOICES=choices)
    return out
