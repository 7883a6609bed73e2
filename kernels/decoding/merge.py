"""What both decode kernels share: who sees which slot, how the slots are split, and how partial results are combined.

A cache holds a sequence's tokens in T slots. Slot t is in use when t < length, and holds the token at position

    t                                                      as it is
    last - (last - t) mod T,  last = length - 1            in a ring, where a token overwrites the one T before it
    key_positions[b, t]                                    where they are given; a negative one is an empty slot

Paged, slot t is row t mod page of page table[b, t // page]. What is not in use may be NaN: it is never loaded.
A query at position p sees positions p - window + 1 .. p, and none before its chunk began, p - p mod chunk.

Split-KV: program j of n works on its share of the slots and leaves o_j = softmax(s_j) v_j and l_j = log2 Σ exp2(s_j);
then o = Σ_j w_j o_j / (Σ_j w_j + exp2(sink)) with w_j = exp2(l_j), all less their maximum. The number of splits
depends on shapes and the device only, so that nothing waits for the GPU and CUDA graphs can hold it.

B batch, N query heads, S queries of a sequence, T slots, K KV heads, V value width, M pages of a sequence.
"""

from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.launching import Config, choose, launch

__all__ = [
    "LOG2E",
    "combine",
    "key_positions_of",
    "limits_of",
    "pages_of",
    "row_at",
    "share_of",
    "softmax_step",
    "split_count",
    "tanh",
]

LOG2E = tl.constexpr(1.4426950408889634)
MOST_SPLITS = 128
FAR = tl.constexpr(2**30)


@triton.jit
def tanh(x):
    """tanh(x) to 2 roundings: 1 - e loses its digits near 0, where an odd polynomial (fitted on |x| ≤ 0.6) has them."""
    e = tl.exp(tl.abs(x) * -2.0)
    far = (1.0 - e) / (1.0 + e)
    u = x * x
    series = (((u * -0.00585783 + 0.020771) * u - 0.05377915) * u + 0.13331912) * u - 0.333333
    return tl.where(u < 0.36, x + x * u * series, tl.where(x < 0.0, -far, far))


@triton.jit
def limits_of(query_positions, batch, token, length, tokens, window, chunk, CAUSAL: tl.constexpr):
    """For rows [M] of queries `token`: position, and the first and last position seen; none for rows past the end."""
    if query_positions is None:
        position = length - tokens + token
    else:
        at = query_positions + batch * tokens + token
        position = tl.load(at, mask=token < tokens, other=-1).to(tl.int32)
    low = tl.maximum(position * 0, 0)
    if window is not None:
        low = tl.maximum(low, position - window + 1)
    if chunk is not None:
        low = tl.maximum(low, position // chunk * chunk)
    high = position if CAUSAL else position * 0 + FAR
    inside = token < tokens
    return position, tl.where(inside, low, FAR), tl.where(inside, high, -1)


@triton.jit
def key_positions_of(key_positions, batch, slot, inside, length, capacity, RING: tl.constexpr):
    """Positions [N] of the tokens in slots; negative where a slot is empty."""
    if key_positions is not None:
        position = tl.load(key_positions + batch * capacity + slot, mask=inside, other=-1).to(tl.int32)
    elif RING:
        position = tl.where(inside, length - 1 - (length - 1 - slot) % capacity, -1)
    else:
        position = tl.where(inside, slot, -1)
    return position


@triton.jit
def share_of(low, high, length, capacity, split, splits, SLOTS: tl.constexpr, BLOCK_N: tl.constexpr):
    """First slot and end of one split: whole tiles, as even as they go. Where a slot's number is its position (SLOTS)
    only slots that some query sees are shared out."""
    first = length * 0
    end = tl.minimum(length, capacity)
    if SLOTS:
        first = tl.minimum(tl.min(low, 0), end)
        end = tl.minimum(end, tl.max(high, 0) + 1)
    tiles = (tl.maximum(end - first, 0) + BLOCK_N - 1) // BLOCK_N
    each = (tiles + splits - 1) // splits * BLOCK_N
    start = first + split * each
    return start, tl.minimum(start + each, end)


@triton.jit
def pages_of(table, batch, slot, end, table_row, PAGE: tl.constexpr):
    """Page of each slot [N], or the sequence itself where there are no pages. A loop asks for its next tile's pages: an
    address that waits for a load in the same turn would not be fetched ahead."""
    page = batch.to(tl.int32)
    if PAGE:
        page = tl.load(table + batch * table_row + slot // PAGE, mask=slot < end, other=0)
    return page


@triton.jit
def row_at(page, slot, outer, inner, PAGE: tl.constexpr):
    """Offsets [N] of rows, from the strides of pages or sequences (`outer`) and of slots (`inner`)."""
    if PAGE:
        slot = slot % PAGE
    return page.to(tl.int64) * outer + slot.to(tl.int64) * inner


@triton.jit
def softmax_step(scores, key, low, high, top, total):
    """Weights exp2(scores - top) of the keys that are seen, the new top and total, and what older sums shrink by.
    A row that has seen nothing has top -inf and weights 0."""
    visible = (key[None, :] >= low[:, None]) & (key[None, :] <= high[:, None])
    scores = tl.where(visible, scores, -float("inf"))
    new = tl.maximum(top, tl.max(scores, 1))
    finite = tl.where(new == -float("inf"), 0.0, new)
    weights = tl.exp2(scores - finite[:, None])
    shrink = tl.exp2(top - finite)
    return weights, new, total * shrink + tl.sum(weights, 1), shrink


@triton.jit
def combine_splits(
    parts, sums, sinks, out, heads, tokens, splits, WIDTH: tl.constexpr, SPLITS: tl.constexpr, BLOCK: tl.constexpr
):
    """A program: BLOCK columns of one row (b, n, s). Parts of splits that saw nothing were not written."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    split = tl.arange(0, SPLITS)
    logs = tl.load(sums + row * splits + split, mask=split < splits, other=-float("inf"))
    top = tl.max(logs, 0)
    if sinks is not None:
        sink = tl.load(sinks + row // tokens % heads).to(tl.float32) * LOG2E
        top = tl.maximum(top, sink)
    top = tl.where(top == -float("inf"), 0.0, top)
    weights = tl.exp2(logs - top)
    total = tl.sum(weights, 0)
    if sinks is not None:
        total += tl.exp2(sink - top)
    weights = weights / tl.where(total > 0.0, total, 1.0)
    at = parts + (row * splits + split[:, None]) * WIDTH + column[None, :]
    wanted = (logs[:, None] > -float("inf")) & (column[None, :] < WIDTH)
    result = tl.sum(tl.load(at, mask=wanted, other=0.0) * weights[:, None], 0)
    tl.store(out + row * WIDTH + column, result.to(out.dtype.element_ty), mask=column < WIDTH)


def combine_configurations(width: int, splits: int) -> list[Config]:
    """The tile [splits, BLOCK] is at most 8192 fp32, 64 registers a thread of 4 warps; wide rows take more programs."""
    block = min(triton.next_power_of_2(width), max(32, 8192 // splits), 256)
    return [Config(BLOCK=block, num_warps=4 if splits * block > 2048 else 2, note="one pass over all splits")]


def combine(parts: Tensor, sums: Tensor, sinks: Tensor | None, out: Tensor) -> None:
    """parts [B, N, S, splits, V] and sums [B, N, S, splits] into out [B, N, S, V]."""
    batch, heads, tokens, splits, width = parts.shape
    rounded = max(2, triton.next_power_of_2(splits))
    config = choose("combine_splits", combine_configurations(width, rounded))
    grid = (batch * heads * tokens, triton.cdiv(width, config["BLOCK"]))
    options = {"WIDTH": width, "SPLITS": rounded}
    launch(combine_splits, grid, config, parts, sums, sinks, out, heads, tokens, splits, **options)


@lru_cache(maxsize=4096)
def split_count(programs: int, slots: int, block: int, resident: int) -> int:
    """Splits of each of `programs` over `slots` in tiles of `block`, when `resident` programs run at a time.

    A program costs its tiles and about two more to start and to end, combining about four; what counts is how many
    times the device has to be filled. Few long sequences are split until they fill it, many short ones not at all.
    """
    tiles = max(1, triton.cdiv(slots, block))

    def tiles_in_turn(splits: int) -> int:
        return triton.cdiv(programs * splits, resident) * (triton.cdiv(tiles, splits) + 2) + 4 * (splits > 1)

    return min(range(1, min(tiles, MOST_SPLITS) + 1), key=tiles_in_turn)
