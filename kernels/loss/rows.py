"""Rows of logits: the loss of each, what its gradient needs, and its gradient, which may take the logits' place.

`cross_entropy` has the formulas. A program reads one row, once for max and sum (each lane its own, so that no step
waits for another warp) and, for the gradient, once more from its end, where the cache still holds it.

Shapes: t tokens, V vocabulary; logits [t, V]. Arithmetic in fp32.
Online softmax: Milakov and Gimelshein, arXiv 1805.02867.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.attention.tiles import capped
from llmbench.kernels.launching import Config, choose, launch
from llmbench.kernels.products import narrowed

__all__ = ["LOG2E", "LOWEST", "Options", "logit", "rows_of_loss", "token_loss"]

REDUCTIONS = ("mean", "sum", "none")
LOG2E = tl.constexpr(math.log2(math.e))
LOWEST = tl.constexpr(-1e30)  # below every finite logit, and no infinity, whose difference from itself is NaN


class Options(NamedTuple):
    """What is done to logits before the loss, and added to it."""

    logit_scale: float = 1.0
    soft_cap: float | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    ignore_index: int = -100

    @property
    def arguments(self) -> tuple[float, float, float, float, int]:
        """As the kernels take them: the cap a number, which CAPPED says to heed."""
        return self.logit_scale, self.soft_cap or 1.0, self.z_loss, self.label_smoothing, self.ignore_index

    @property
    def constants(self) -> dict[str, bool]:
        """What the kernels are compiled for."""
        return {"CAPPED": self.soft_cap is not None, "SMOOTHED": self.label_smoothing > 0}

    def check(self, reduction: str) -> None:
        """Raise ValueError for what has no meaning."""
        if reduction not in REDUCTIONS:
            raise ValueError(f"reduction {reduction!r}: there is {', '.join(REDUCTIONS)}")
        if self.soft_cap is not None and not self.soft_cap > 0:
            raise ValueError(f"soft_cap {self.soft_cap} is not above 0")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing {self.label_smoothing} is outside 0 to 1")


@triton.jit
def logit_and_slope(raw, scale, cap, CAPPED: tl.constexpr, EXACT: tl.constexpr):
    """l in fp32 and dl/draw; the slope costs nothing where it is not used."""
    value = raw.to(tl.float32) * scale
    slope = scale
    if CAPPED:
        bend = capped(value / cap, EXACT)
        value = bend * cap
        slope = (1.0 - bend * bend) * scale
    return value, slope


@triton.jit
def logit(raw, scale, cap, CAPPED: tl.constexpr, EXACT: tl.constexpr):
    """l alone."""
    value, _ = logit_and_slope(raw, scale, cap, CAPPED, EXACT)
    return value


@triton.jit
def token_loss(target, top, log_sum, at_target, mean, z_loss, smoothing, ignored, SMOOTHED: tl.constexpr):
    """The loss, with z = top + log_sum in two parts: top - l[target] loses no digits."""
    loss = (top - at_target) + log_sum
    if SMOOTHED:
        loss += (at_target - mean) * smoothing
    z = top + log_sum
    return tl.where(target == ignored, 0.0, loss + z * z * z_loss)


@triton.jit
def cross_entropy_rows(
    logits,
    targets,
    losses,
    stats,
    weights,
    gradient,
    logits_row,
    gradient_row,
    weights_step,
    tokens,
    vocabulary,
    width,
    lift,
    scale,
    cap,
    z_loss,
    smoothing,
    ignored,
    CAPPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    KNOWN: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its loss, its stats [2, t] (the largest logit; the log of the sum of exp(l - largest)) and its gradient
    times weight · lift, each where it is given; KNOWN: stats are read. `gradient` may be `logits`.

    `width` columns can be read and written, V of them are logits: a padded row is loaded in whole vectors."""
    token = tl.program_id(0)
    row = token.to(tl.int64)
    logits += row * logits_row
    target = tl.load(targets + row)
    valid = (target >= 0) & (target < vocabulary)
    lane = tl.arange(0, BLOCK)
    if KNOWN:
        top = tl.load(stats + row)
        log_sum = tl.load(stats + tokens + row)
    else:
        chosen = tl.load(logits + target, mask=valid, other=float("nan"))  # before the gradient may overwrite it
        at_target = logit(chosen, scale, cap, CAPPED, EXACT)
        tops = tl.full([BLOCK], LOWEST, tl.float32)
        sums = tl.zeros([BLOCK], tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, tl.where(target == ignored, 0, width), BLOCK):
            column = start + lane
            raw = tl.load(logits + column, mask=column < width, other=0.0)
            value = logit(raw, scale, cap, CAPPED, EXACT)
            value = tl.where(column < vocabulary, value, float("-inf"))
            higher = tl.maximum(tops, value)
            sums = sums * tl.exp2((tops - higher) * LOG2E) + tl.exp2((value - higher) * LOG2E)
            tops = higher
            if SMOOTHED:
                total += tl.where(column < vocabulary, value, 0.0)
        top = tl.max(tops, 0)
        sum_exp = tl.sum(sums * tl.exp2((tops - top) * LOG2E), 0)
        top = tl.where(target == ignored, 0.0, top)  # nothing was read there
        log_sum = tl.log(tl.where(target == ignored, 1.0, sum_exp))
        if losses is not None:
            mean = tl.sum(total, 0) / vocabulary
            loss = token_loss(target, top, log_sum, at_target, mean, z_loss, smoothing, ignored, SMOOTHED)
            tl.store(losses + row, loss)
        if stats is not None:
            tl.store(stats + row, top)
            tl.store(stats + tokens + row, log_sum)
    if gradient is not None:
        gradient += row * gradient_row
        weight = tl.load(weights + row * weights_step) * lift
        weight = tl.where(valid, weight, float("nan"))
        pull = (top + log_sum) * z_loss * 2.0 + 1.0
        blocks = tl.cdiv(width, BLOCK)
        for step in range(blocks):
            column = (blocks - 1 - step) * BLOCK + lane
            raw = tl.load(logits + column, mask=column < width, other=0.0)
            value, slope = logit_and_slope(raw, scale, cap, CAPPED, EXACT)
            slant = tl.exp2(((value - top) - log_sum) * LOG2E) * pull - tl.where(column == target, 1.0 - smoothing, 0.0)
            if SMOOTHED:
                slant -= smoothing / vocabulary
            slant = tl.where(target == ignored, 0.0, slant * slope * weight)  # 0 whatever is in the row
            tl.store(gradient + column, narrowed(slant, gradient.dtype.element_ty), mask=column < width)


def configurations(vocabulary: int, itemsize: int) -> list[Config]:
    """A row of 128k logits in bf16 is 256 KB: 132 of them stay in the second-level cache for their second reading, the
    264 of two blocks a multiprocessor would not. 16 values a thread take some 55 registers, so that 1024 threads
    are one block; they have 32 KB on their way, where its share of the bandwidth asks for 23. fp32: half as many.
    """
    if vocabulary <= 8192:
        block = max(256, triton.next_power_of_2(vocabulary) // 2)
        return [Config(BLOCK=block, num_warps=max(1, block // 512), note="short rows: two steps of 16 a thread")]
    whole = 32768 // itemsize
    return [
        Config(
            BLOCK=whole, num_warps=whole // 512, note="one row a multiprocessor: the second reading is of the cache"
        ),
        Config(BLOCK=whole // 2, num_warps=whole // 1024, note="two or more rows a multiprocessor"),
        Config(BLOCK=whole // 4, num_warps=whole // 2048, note="four or more, each with fewer warps"),
    ]


def rows_of_loss(
    logits: Tensor,
    targets: Tensor,
    options: Options,
    *,
    losses: Tensor | None = None,
    stats: Tensor | None = None,
    known: bool = False,
    weights: Tensor | None = None,
    gradient: Tensor | None = None,
    lift: float = 1.0,
    padded: int | None = None,
) -> None:
    """Fill what is given of losses [t], stats [2, t] and gradient [t, V], which is times weights [t] · lift (a
    launcher). `padded`: so many columns of a row may be read, and written in its gradient."""
    tokens, vocabulary = logits.shape
    config = choose("cross_entropy_rows", configurations(vocabulary, logits.element_size()))
    launch(
        cross_entropy_rows,
        (tokens,),
        config,
        *(logits, targets, losses, stats, weights, gradient, logits.stride(0)),
        *(0 if gradient is None else gradient.stride(0), 0 if weights is None else weights.stride(0)),
        *(tokens, vocabulary, padded or vocabulary, lift, *options.arguments),
        KNOWN=known,
        EXACT=logits.dtype == torch.float32,
        **options.constants,
    )
