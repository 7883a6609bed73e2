"""Losses of a model's head, x·Wᵀ + bias, without any logits in memory: one matrix product, forward only.

vocabulary_tiles  writes, for each tile of BLOCK_M tokens × BLOCK_N vocabulary entries, each token's largest logit
                  and Σ exp(l - largest), with smoothing also Σ l. These are 8 B (12 B with smoothing) for 256
                  logits of a token. The logits themselves would take 64 times as many bytes in bf16
losses_of_tiles   merges a token's tiles. It computes l[target] again from x and one row of W, because a search for
                  l[target] in the tiles would take too many registers

Only as many programs start as can run at the same time. They loop over the tiles, GROUP rows of tiles at a time, so
that concurrent programs share x and W in the L2 cache. They load the next tile while they reduce the current tile.

Shapes: t tokens, D hidden, V vocabulary; x [t, D], W [V, D], bias [V], targets [t]. Losses without logits: Wijmans et
al., Cut Your Losses, arXiv 2411.09009.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.launching import Config, architecture, choose, empty, fits_descriptor, launch, multiprocessors
from llmbench.kernels.loss.cross_entropy import LOWEST, Options, logit, token_loss
from llmbench.kernels.numeric import LOG2E
from llmbench.kernels.products import dot

__all__ = ["linear_losses"]


# == Kernels ==


@triton.jit
def vocabulary_tiles(
    x, w, bias, partials, tokens, vocabulary, hidden, x_row, w_row, scale, cap,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, EXACT: tl.constexpr, TMA: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program computes the partial results of its tiles of tokens × vocabulary.

    `partials` [2 or 3, tiles of the vocabulary, t] contains, for each tile and token, the largest logit,
    Σ exp(l - largest), and with smoothing Σ l. Parameters that end in `_row` are strides in elements.
    """
    down, across = tl.cdiv(tokens, BLOCK_M), tl.cdiv(vocabulary, BLOCK_N)
    sheet = across.to(tl.int64) * tokens
    if TMA:
        x_tiles = tl.make_tensor_descriptor(x, [tokens, hidden], [tl.cast(x_row, tl.int64), 1], [BLOCK_M, BLOCK_K])
        w_tiles = tl.make_tensor_descriptor(w, [vocabulary, hidden], [tl.cast(w_row, tl.int64), 1], [BLOCK_N, BLOCK_K])
    step = tl.arange(0, BLOCK_K)
    for tile in tl.range(tl.program_id(0), down * across, tl.num_programs(0), flatten=True):
        top = tile // (GROUP * across) * GROUP
        height = tl.minimum(down - top, GROUP)
        first = (top + tile % (GROUP * across) % height) * BLOCK_M
        column = tile % (GROUP * across) // height
        m = first + tl.arange(0, BLOCK_M)
        n = column * BLOCK_N + tl.arange(0, BLOCK_N)
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for k in range(0, hidden, BLOCK_K):
            if TMA:
                rows = x_tiles.load([first, k])
                words = w_tiles.load([column * BLOCK_N, k])
            else:
                inside = (k + step < hidden)[None, :]
                x_at = x + m.to(tl.int64)[:, None] * x_row + (k + step)[None, :]
                w_at = w + n.to(tl.int64)[:, None] * w_row + (k + step)[None, :]
                rows = tl.load(x_at, mask=(m < tokens)[:, None] & inside, other=0.0)
                words = tl.load(w_at, mask=(n < vocabulary)[:, None] & inside, other=0.0)
            acc = dot(rows, tl.trans(words), acc)
        if bias is not None:
            acc += tl.load(bias + n, mask=n < vocabulary, other=0.0).to(tl.float32)[None, :]
        value = logit(acc, scale, cap, CAPPED, EXACT)
        place = partials + column.to(tl.int64) * tokens + m
        if SMOOTHED:
            total = tl.sum(tl.where((n < vocabulary)[None, :], value, 0.0), 1)
            tl.store(place + 2 * sheet, total, mask=m < tokens)
        value = tl.where((n < vocabulary)[None, :], value, LOWEST)
        largest = tl.max(value, 1)
        tl.store(place, largest, mask=m < tokens)
        tl.store(place + sheet, tl.sum(tl.exp2((value - largest[:, None]) * LOG2E), 1), mask=m < tokens)


@triton.jit
def losses_of_tiles(
    partials, x, w, bias, targets, losses, tokens, vocabulary, hidden, x_row, w_row, across, scale, cap, z_loss,
    smoothing, ignored,
    CAPPED: tl.constexpr, SMOOTHED: tl.constexpr, EXACT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program computes the losses of BLOCK_M tokens. Its loop reads the partial results of BLOCK_T tiles of the
    vocabulary at a time, and updates BLOCK_T running results per token. It merges them after the loop."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = m < tokens
    sheet = tl.cast(across, tl.int64) * tokens
    tops = tl.full([BLOCK_T, BLOCK_M], LOWEST, tl.float32)
    sums = tl.zeros([BLOCK_T, BLOCK_M], tl.float32)
    totals = tl.zeros([BLOCK_T, BLOCK_M], tl.float32)
    for start in range(0, across, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        inside = (tile < across)[:, None] & live[None, :]
        place = partials + tile.to(tl.int64)[:, None] * tokens + m[None, :]
        largest = tl.load(place, mask=inside, other=LOWEST)
        higher = tl.maximum(tops, largest)
        sums *= tl.exp2((tops - higher) * LOG2E)
        sums += tl.load(place + sheet, mask=inside, other=0.0) * tl.exp2((largest - higher) * LOG2E)
        tops = higher
        if SMOOTHED:
            totals += tl.load(place + 2 * sheet, mask=inside, other=0.0)
    top = tl.max(tops, 0)
    sum_exp = tl.sum(sums * tl.exp2((tops - top[None, :]) * LOG2E), 0)
    top = tl.where(live, top, 0.0)
    log_sum = tl.log(tl.where(live, sum_exp, 1.0))

    target = tl.load(targets + m, mask=live, other=0)
    valid = (target >= 0) & (target < vocabulary)
    x_at = x + m.to(tl.int64)[:, None] * x_row
    w_at = w + target.to(tl.int64)[:, None] * w_row
    products = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
    for start in range(0, hidden, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)[None, :]
        inside = (live & valid)[:, None] & (k < hidden)
        row = tl.load(x_at + k, mask=inside, other=0.0).to(tl.float32)
        products += row * tl.load(w_at + k, mask=inside, other=0.0).to(tl.float32)
    raw = tl.sum(products, 1)
    if bias is not None:
        raw += tl.load(bias + target, mask=valid, other=0.0).to(tl.float32)
    at_target = tl.where(valid, logit(raw, scale, cap, CAPPED, EXACT), float("nan"))
    mean = tl.sum(totals, 0) / vocabulary
    loss = token_loss(target, top, log_sum, at_target, mean, z_loss, smoothing, ignored, SMOOTHED)
    tl.store(losses + m, loss, mask=live)


# == Configurations and launcher ==


def tile_configurations(itemsize: int, arch: int) -> list[Config]:
    """Return the candidate configurations. An iteration loads 128 B of the hidden dimension per row. This is one line
    of shared memory."""
    shape = {"BLOCK_M": 128, "BLOCK_K": 128 // itemsize, "GROUP": 16, "num_warps": 8}
    half = Config(
        **shape,
        BLOCK_N=128,
        num_stages=3,
        note="64 sums per thread: two blocks per SM, one multiplies while the other reduces",
    )
    # Registers would spill with 256 columns in two cases. Before sm_90, mma.sync keeps its operands in registers. In
    # fp32, the soft cap's tanh also evaluates a series, which takes more registers.
    if arch < 90 or itemsize == 4:
        return [half]
    note = "two warpgroups of 64 × 256: 128 sums per thread, 85 FLOPs per byte of shared memory; 48 KB per stage"
    return [Config(**shape, BLOCK_N=256, num_stages=4, note=note), half]


def join_configurations() -> list[Config]:
    """Return the configuration of `losses_of_tiles`. The kernel makes two short passes over memory, which take a
    hundredth of the product's time. The partial results of 16 tokens in one tile fill two 32-byte sectors. 16k tokens
    give 1024 programs."""
    shape = {"BLOCK_T": 64, "BLOCK_K": 128}
    return [Config(**shape, BLOCK_M=16, num_warps=4, note="8 and 16 values per thread in the two passes")]


def _unit_stride(x: Tensor) -> Tensor:
    """Return x with a last stride of 1, copied if necessary."""
    return x if x.stride(1) == 1 else x.contiguous()


def linear_losses(x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    """Return the losses [t] in fp32. Launch `vocabulary_tiles` and `losses_of_tiles`, which store no logits."""
    x, weight = _unit_stride(x), _unit_stride(weight)
    bias = None if bias is None else bias.contiguous()
    (tokens, hidden), vocabulary = x.shape, weight.shape[0]
    arch = architecture(x.device)
    config = choose("vocabulary_tiles", tile_configurations(x.element_size(), arch))
    across = triton.cdiv(vocabulary, config["BLOCK_N"])
    tiles = triton.cdiv(tokens, config["BLOCK_M"]) * across
    # With 256 columns, one block runs per multiprocessor. With 128 columns, two blocks run.
    programs = multiprocessors(x.device) * (256 // config["BLOCK_N"])
    smoothed = options.constants["SMOOTHED"]
    partials = empty(3 if smoothed else 2, across, tokens, like=x, dtype=torch.float32)
    scale, cap, z_loss, smoothing, ignored = options.arguments
    sizes = tokens, vocabulary, hidden, x.stride(0), weight.stride(0)
    constants = {"EXACT": x.dtype == torch.float32, **options.constants}
    launch(
        vocabulary_tiles,
        (min(tiles, programs),),
        config,
        *(x, weight, bias, partials, *sizes, scale, cap),
        TMA=arch >= 90 and all(matrix.numel() and fits_descriptor(matrix) for matrix in (x, weight)),
        **constants,
    )
    losses = empty(tokens, like=x, dtype=torch.float32)
    join = choose("losses_of_tiles", join_configurations())
    launch(
        losses_of_tiles,
        (triton.cdiv(tokens, join["BLOCK_M"]),),
        join,
        *(partials, x, weight, bias, targets, losses, *sizes, across, scale, cap, z_loss, smoothing, ignored),
        **constants,
    )
    return losses
