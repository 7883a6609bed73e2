"""Functions that both decode kernels share: visible slots, the split of slots over programs, and the merge of splits.

A cache stores a sequence's tokens in T slots. Slot t is in use if t < length, and stores the token at position

    t                                                      in a cache whose tokens are stored in order
    last - (last - t) mod T,  last = length - 1            in a ring: token p overwrites token p - T
    key_positions[b, t]                                    if given; a negative position means an empty slot

In a paged cache, slot t is row t mod page of page table[b, t // page]. Unused slots may contain NaN, because kernels
never load them. A query at position p sees the positions p - window + 1 to p. With chunks, the query sees no position
before p - p mod chunk, the start of its chunk.

Split-KV: program j of n processes its share of the slots and stores o_j = softmax(s_j) v_j and l_j = log2 Σ exp2(s_j).
The result is o = Σ_j w_j o_j / (Σ_j w_j + exp2(sink)) with w_j = exp2(l_j), after the maximum is subtracted from all
exponents. The number of splits depends only on shapes and the device, so the host never waits for the GPU, and a CUDA
graph can capture the launches.

B batch, N query heads, S queries of a sequence, T slots, K KV heads, V value width, M pages per sequence.
"""

from __future__ import annotations

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.launching import Config, choose, launch
from llmbench.kernels.numeric import LOG2E

__all__ = [
    "check_splits",
    "combine",
    "load_key_positions",
    "load_pages",
    "row_offsets",
    "softmax_step",
    "split_count",
    "split_range",
    "visible_range",
]

MAX_SPLITS = 128
FAR = tl.constexpr(2**30)  # a position after every token


# == Kernels ==


@triton.jit
def visible_range(query_positions, batch, token, length, tokens, window, chunk, CAUSAL: tl.constexpr):
    """Return the position of each query `token` [M], the first position that the query sees, and the last position that
    the query sees, each [M]. Rows past the last query see no position."""
    if query_positions is None:
        position = length - tokens + token
    else:
        at = query_positions + batch * tokens + token
        position = tl.load(at, mask=token < tokens, other=-1).to(tl.int32)
    low = tl.zeros_like(position)
    if window is not None:
        low = tl.maximum(low, position - window + 1)
    if chunk is not None:
        low = tl.maximum(low, position // chunk * chunk)
    high = position if CAUSAL else position * 0 + FAR
    inside = token < tokens
    if window is not None or chunk is not None:
        low = tl.where(inside, low, FAR)
    return position, low, tl.where(inside, high, -1)


@triton.jit
def load_key_positions(key_positions, batch, slot, inside, length, capacity, RING: tl.constexpr):
    """Return the positions [N] of the tokens in the slots `slot` [N]. An empty slot has a negative position."""
    if key_positions is not None:
        position = tl.load(key_positions + batch * capacity + slot, mask=inside, other=-1).to(tl.int32)
    elif RING:
        newest = (length - 1) % capacity  # the slot of the last token; one division before the loop
        position = length - 1 - newest + slot - tl.where(slot > newest, capacity, 0)
        position = tl.where(inside, position, -1)
    else:
        position = tl.where(inside, slot, -1)
    return position


@triton.jit
def split_range(low, high, length, capacity, split, splits, SLOTS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Return the first slot and the end of one split. Whole tiles are divided among the splits as evenly as possible.

    With SLOTS, slot t stores the token at position t, so only the slots that a query sees are divided.
    """
    first = length * 0
    end = tl.minimum(length, capacity)
    if SLOTS:
        first = tl.minimum(tl.min(low, 0), end)
        end = tl.minimum(end, tl.max(high, 0) + 1)
    tiles = (tl.maximum(end - first, 0) + BLOCK_N - 1) // BLOCK_N
    per_split = (tiles + splits - 1) // splits * BLOCK_N
    start = first + split * per_split
    return start, tl.minimum(start + per_split, end)


@triton.jit
def load_pages(table, batch, slot, end, table_row, PAGE: tl.constexpr):
    """Return the page [N] of each slot. For a cache without pages, return the number of the sequence.

    A loop loads the pages of the next tile in advance, because rows cannot be prefetched if their addresses depend on a
    load in the same iteration.
    """
    page = batch.to(tl.int32)
    if PAGE:
        page = tl.load(table + batch * table_row + slot // PAGE, mask=slot < end, other=0)
    return page


@triton.jit
def row_offsets(page, slot, outer, inner, PAGE: tl.constexpr):
    """Return the offsets [N] of rows in elements. `outer` is the stride of pages or sequences, `inner` the stride of
    slots."""
    if PAGE:
        slot = slot % PAGE
    return page.to(tl.int64) * outer + slot.to(tl.int64) * inner


@triton.jit
def softmax_step(scores, key, low, high, top, total):
    """Do one step of online softmax. Return the weights exp2(scores - top), the new top and total, and the factor for
    the old sums.

    For a row that has seen no visible key yet, top is -inf and the weights are 0.
    """
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
    """One program merges BLOCK columns of one row (b, n, s). A split without a visible key has not written its part of
    the result, so that part is not read."""
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


# == Configurations and launcher ==


def combine_configurations(width: int, splits: int) -> list[Config]:
    """Return the configuration. A tile [splits, BLOCK] has at most 8192 fp32 values: 64 registers per thread of 4
    warps."""
    block = min(triton.next_power_of_2(width), max(32, 8192 // splits), 256)
    return [Config(BLOCK=block, num_warps=4 if splits * block > 2048 else 2, note="one pass over all splits")]


def combine(parts: Tensor, sums: Tensor, sinks: Tensor | None, out: Tensor) -> None:
    """Launch `combine_splits`, which merges parts [B, N, S, splits, V] into out [B, N, S, V]. `sums` [B, N, S, splits]
    contains the log-sum-exp of each split, with base 2."""
    batch, heads, tokens, splits, width = parts.shape
    rounded = max(2, triton.next_power_of_2(splits))
    config = choose("combine_splits", combine_configurations(width, rounded))
    grid = (batch * heads * tokens, triton.cdiv(width, config["BLOCK"]))
    options = {"WIDTH": width, "SPLITS": rounded}
    launch(combine_splits, grid, config, parts, sums, sinks, out, heads, tokens, splits, **options)


def check_splits(splits: int) -> None:
    """Raise ValueError unless `splits` is a number of splits that the merge supports, or 0 for the op's own choice."""
    if not 0 <= splits <= MAX_SPLITS:
        raise ValueError(f"splits={splits} must be from 0 to {MAX_SPLITS}")


@lru_cache(maxsize=4096)
def split_count(programs: int, slots: int, block: int, resident: int) -> int:
    """Return the number of splits for `programs` programs of `slots` slots each, in tiles of `block` slots.

    `resident` programs run at the same time. The unit of time is the time of one tile. A program takes one unit per
    tile, and about two units for its start and end. The merge takes about four units. The total is the time of one
    program times the number of waves of programs, plus the merge. So few long sequences are split until they fill the
    GPU, and many short sequences are not split.
    """
    tiles = max(1, triton.cdiv(slots, block))

    def tile_times(splits: int) -> int:
        return triton.cdiv(programs * splits, resident) * (triton.cdiv(tiles, splits) + 2) + 4 * (splits > 1)

    return min(range(1, min(tiles, MAX_SPLITS) + 1), key=tile_times)
