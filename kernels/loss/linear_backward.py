"""The gradients of a head's loss, in three products: chunk after chunk of tokens, with one buffer of logits for all.

    logits  c = x[chunk]·Wᵀ + bias, by torch's library
    rows    each row of c becomes its loss and is overwritten with its gradient g (`cross_entropy_rows`)
    sums    dx[chunk] = g·W,  dW += gᵀ·x[chunk],  dbias += Σ g, by torch's library

The buffer takes an eighth of the logits at most, or 256 rows. dW and dbias are rounded to their format once a chunk,
some ten times.

Shapes: t tokens, D hidden, V vocabulary; x [t, D], W [V, D], bias [V], targets [t].
Gradients in the forward pass: Hsu et al., Liger Kernel, arXiv 2410.10989.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.launching import Config, choose, empty, launch
from llmbench.kernels.loss.rows import Options, rows_of_loss
from llmbench.kernels.products import multiply_into, narrowed

__all__ = ["Wanted", "gradients", "lifts", "rescale", "rows_a_chunk"]


@triton.jit
def scaled_in_place(values, by, factor, count, BLOCK: tl.constexpr):
    """values *= by · factor; nothing is read where that is 1."""
    scale = tl.load(by) * factor
    if scale != 1.0:
        at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
        value = tl.load(values + at, mask=at < count, other=0.0).to(tl.float32) * scale
        tl.store(values + at, narrowed(value, values.dtype.element_ty), mask=at < count)


def scaling_configurations() -> list[Config]:
    """Bound by memory: 16 values a thread, two 16-byte loads in bf16, some 40 registers."""
    return [Config(BLOCK=4096, num_warps=8, note="16 values a thread"), Config(BLOCK=2048, num_warps=8, note="8")]


class Wanted(NamedTuple):
    """Which gradients are asked for."""

    x: bool
    weight: bool
    bias: bool


def rows_a_chunk(tokens: int) -> int:
    """Whole tiles of 128 rows, below an eighth of the tokens: with what else a token needs, the logits' eighth is kept.

    At least 256: a chunk reads W twice and reads and writes dW, 8·V·D bytes in bf16 against 6·V·D FLOPs a row, so that
    256 rows make 192 FLOPs a byte, which is the ridge of an H200.
    """
    return max(256, (tokens - 1) // 1024 * 128)


def gradients(
    weights: Tensor,
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    options: Options,
    wanted: Wanted,
    *,
    losses: Tensor | None = None,
    lift: float = 1.0,
    damp: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of Σ weights [t] · losses: dx · lift, dweight and dbias · lift · damp, empty where not wanted; fills
    `losses` [t] (a launcher)."""
    (tokens, hidden), vocabulary = x.shape, weight.shape[0]
    rows = min(tokens, rows_a_chunk(tokens))
    padded = triton.cdiv(vocabulary, 64) * 64  # every row begins at a whole line of 128 bytes
    dx = empty(tokens if wanted.x else 0, hidden, like=x)
    dweight = empty(vocabulary if wanted.weight else 0, hidden, like=weight)
    dbias = empty(1, vocabulary if wanted.bias else 0, like=weight)
    if not tokens:
        return dx, dweight.zero_(), dbias[0].zero_()
    buffer = empty(rows, padded, like=x)
    buffer[:, vocabulary:].zero_()  # read with the rows
    ones = x.new_ones(1, rows) if wanted.bias else None
    for start in range(0, tokens, rows):
        part = slice(start, min(tokens, start + rows))
        size = part.stop - start
        logits = buffer[:size, :vocabulary]
        multiply_into(logits, x[part], weight.T, plus=bias)
        rows_of_loss(
            logits,
            targets[part],
            options,
            losses=None if losses is None else losses[part],
            weights=weights[part],
            gradient=logits,
            lift=lift,
            padded=padded,
        )
        if wanted.x:
            multiply_into(dx[part], logits, weight)
        if wanted.weight:
            multiply_into(dweight, logits.T, x[part], plus=dweight if start else None, alpha=damp)
        if ones is not None:
            multiply_into(dbias, ones[:, :size], logits, plus=dbias if start else None, alpha=damp)
    return dx, dweight, dbias[0]


def lifts(dtype: torch.dtype, tokens: int, *, mean: bool) -> tuple[float, float]:
    """lift and damp, powers of two. A mean's gradients are some 1/t of a logit's: in fp16 they would vanish, so they
    are held t times as large; and dW, a sum over tokens, √t times, so that it does not overflow."""
    if dtype != torch.float16:
        return 1.0, 1.0
    power = math.ceil(math.log2(max(1, tokens)))
    return (2.0**power if mean else 1.0), 2.0 ** -(power // 2)


def rescale(held: tuple[Tensor, Tensor, Tensor], by: Tensor, lift: float, damp: float) -> None:
    """Multiply dx, dweight and dbias in place by `by` [], and take lift and damp away (a launcher)."""
    config = choose("scaled_in_place", scaling_configurations())
    for gradient, factor in zip(held, (1 / lift, 1 / (lift * damp), 1 / (lift * damp)), strict=True):
        count = gradient.numel()
        if count:
            launch(scaled_in_place, (triton.cdiv(count, config["BLOCK"]),), config, gradient, by, factor, count)
