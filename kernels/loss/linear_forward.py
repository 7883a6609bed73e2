"""The losses of x·Wᵀ + bias where nobody needs the logits: a product whose tiles are summed up and never written.

    partials  of a tile of BLOCK_M tokens by BLOCK_N of the vocabulary: each token's largest logit, Σ exp(l - largest),
              for smoothing Σ l too
    losses    each token's tiles put together; l[target] is made again from x and one row of W, because to look for it
              among a tile's logits would take more registers than there are

Programs are as many as run at a time and walk the tiles GROUP rows of tiles at a time, so that neighbours share x and
W in the second-level cache; their loads run on into the next tile while this one is summed up.
Partials are 8 B a token and 256 of the vocabulary, a 64th of bf16 logits (12 B with smoothing).

fp32 operands are multiplied in tf32 on a GPU; sums are in fp32. Nothing is added by atomics: results repeat exactly.
Shapes: t tokens, D hidden, V vocabulary; x [t, D], W [V, D]. Losses without logits: Wijmans et al., arXiv 2411.09009.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.launching import Config, architecture, choose, empty, launch, multiprocessors
from llmbench.kernels.loss.rows import LOG2E, LOWEST, Options, logit, token_loss
from llmbench.kernels.products import dot

__all__ = ["linear_losses"]


@triton.jit
def vocabulary_tiles(
    x,
    w,
    bias,
    partials,
    tokens,
    vocabulary,
    hidden,
    x_row,
    w_row,
    scale,
    cap,
    CAPPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    EXACT: tl.constexpr,
    TMA: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """partials [2 or 3, tiles of the vocabulary, t]; `_row` are strides of rows in elements."""
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
    partials,
    x,
    w,
    bias,
    targets,
    losses,
    tokens,
    vocabulary,
    hidden,
    x_row,
    w_row,
    across,
    scale,
    cap,
    z_loss,
    smoothing,
    ignored,
    CAPPED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    EXACT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The losses of BLOCK_M tokens, from BLOCK_T tiles of the vocabulary at a time; each lane its own, joined last."""
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


def tile_configurations(itemsize: int, arch: int) -> list[Config]:
    """128 B of the hidden dimension a step, which is a line of shared memory."""
    shape = {"BLOCK_M": 128, "BLOCK_K": 128 // itemsize, "GROUP": 16, "num_warps": 8}
    half = Config(**shape, BLOCK_N=128, num_stages=3, note="64 sums a thread: two blocks an SM hide each other's ends")
    # 256 columns would spill: mma.sync holds its operands in registers too, and fp32 asks for a longer tanh
    if arch < 90 or itemsize == 4:
        return [half]
    note = "two warpgroups of 64 × 256: 128 sums a thread, 85 FLOP a byte of shared memory; 48 KB a stage"
    return [Config(**shape, BLOCK_N=256, num_stages=4, note=note), half]


def join_configurations() -> list[Config]:
    """Two short passes over memory, a hundredth of the product's time: 16 tokens fill two 32-byte sectors a tile, and
    16k tokens make 1024 programs."""
    shape = {"BLOCK_T": 64, "BLOCK_K": 128}
    return [Config(**shape, BLOCK_M=16, num_warps=4, note="8 and 16 values a thread in the two passes")]


def _line(x: Tensor) -> Tensor:
    """x with its last stride 1."""
    return x if x.stride(1) == 1 else x.contiguous()


def _described(*matrices: Tensor) -> bool:
    """Whether tensor descriptors can name them: rows and addresses at multiples of 16 bytes."""
    return all(
        x.numel() and not any(n * x.element_size() % 16 for n in (x.stride(0), x.storage_offset())) for x in matrices
    )


def linear_losses(x: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None, options: Options) -> Tensor:
    """losses [t] in fp32 (a launcher)."""
    x, weight = _line(x), _line(weight)
    (tokens, hidden), vocabulary = x.shape, weight.shape[0]
    arch = architecture(x.device)
    config = choose("vocabulary_tiles", tile_configurations(x.element_size(), arch))
    across = triton.cdiv(vocabulary, config["BLOCK_N"])
    tiles = triton.cdiv(tokens, config["BLOCK_M"]) * across
    programs = multiprocessors(x.device) * (256 // config["BLOCK_N"])  # one block of 256 columns, or two of 128
    smoothed = options.constants["SMOOTHED"]
    partials = empty(3 if smoothed else 2, across, tokens, like=x, dtype=torch.float32)
    scale, cap, z_loss, smoothing, ignored = options.arguments
    sizes = tokens, vocabulary, hidden, x.stride(0), weight.stride(0)
    compiled_for = {"EXACT": x.dtype == torch.float32, **options.constants}
    launch(
        vocabulary_tiles,
        (min(tiles, programs),),
        config,
        *(x, weight, bias, partials, *sizes, scale, cap),
        TMA=arch >= 90 and _described(x, weight),
        **compiled_for,
    )
    losses = empty(tokens, like=x, dtype=torch.float32)
    join = choose("losses_of_tiles", join_configurations())
    launch(
        losses_of_tiles,
        (triton.cdiv(tokens, join["BLOCK_M"]),),
        join,
        *(partials, x, weight, bias, targets, losses, *sizes, across, scale, cap, z_loss, smoothing, ignored),
        **compiled_for,
    )
    return losses
