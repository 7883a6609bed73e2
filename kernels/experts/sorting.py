"""Rows sorted by their expert, and experts cut into tiles of rows, all on the GPU: the host never learns how many rows
an expert has, only what it cannot exceed.

    order    [R]         the pairs (token, slot) as token · k + slot, by expert and within an expert as they came
    offsets  [E + 1]     expert e has the places offsets[e] to offsets[e + 1] of that order
    tiles    [2, limit]  for each tile its expert and its first place; expert -1 where there is no tile

A counting sort in two launches: every program counts a stretch of the pairs for a few experts; then, from the counts
of all stretches, each finds where its own begin and places them by a running count. No atomics: the order is always
the same. An expert with n rows has ⌈n / TILE⌉ tiles, so that R rows of E experts have at most
(R + min(E, R) · (TILE − 1)) / TILE, which is the grid; the tiles beyond the real ones do nothing.

Pairs whose expert is E or more (experts that compute nothing) come last in no order at all: they are not placed.
Shapes: chosen [t, k], R = t · k pairs, E experts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.launching import Config, choose, empty, launch

__all__ = ["rows_a_tile", "sort_by_expert", "tile_limit", "tiles_of"]

STRETCHES = 32  # at most so many: each program reads the counts of all of them


@triton.jit
def _cut(tiles, expert, first, number, experts, limit, STEP: tl.constexpr, TILE: tl.constexpr, start):
    """Write the tiles of `expert` [X]: `number` from `first`, of rows from `start`; those past the last say -1."""
    number = tl.where(expert == experts, limit - first, number)
    who = tl.where(expert < experts, expert, -1)[:, None]
    for i in range(0, tl.max(number, axis=0), STEP):
        tile = i + tl.arange(0, STEP)[None, :]
        here = tile < number[:, None]
        tl.store(tiles + first[:, None] + tile, who, mask=here)
        tl.store(tiles + limit + first[:, None] + tile, start[:, None] + tile * TILE, mask=here)


@triton.jit
def count_choices(chosen, counts, pairs, experts, stretch, BLOCK: tl.constexpr, SOME: tl.constexpr):
    """counts[c, e]: how many of the pairs of stretch c chose expert e, for SOME experts."""
    c = tl.program_id(0)
    expert = tl.program_id(1) * SOME + tl.arange(0, SOME)
    end = tl.minimum((c + 1) * stretch, pairs)
    total = tl.zeros([SOME], tl.int32)
    for start in range(c * stretch, end, BLOCK):
        pair = start + tl.arange(0, BLOCK)
        choice = tl.load(chosen + pair, mask=pair < end, other=-1).to(tl.int32)
        total += tl.sum((choice[:, None] == expert[None, :]).to(tl.int32), axis=0)
    tl.store(counts + c * experts + expert, total, mask=expert < experts)


@triton.jit
def place_choices(
    chosen,
    counts,
    order,
    offsets,
    tiles,
    pairs,
    experts,
    stretches,
    stretch,
    limit,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    SOME: tl.constexpr,
    ALL: tl.constexpr,
):
    """Place the pairs of stretch c that chose one of SOME experts; the first stretch writes offsets and tiles."""
    c = tl.program_id(0)
    expert = tl.program_id(1) * SOME + tl.arange(0, SOME)
    everyone = tl.arange(0, ALL)
    total = tl.zeros([ALL], tl.int32)
    before = tl.zeros([SOME], tl.int32)  # of the same expert in the stretches before this one
    for i in range(stretches):
        total += tl.load(counts + i * experts + everyone, mask=everyone < experts, other=0)
        counted = tl.where(c > i, experts, 0)
        before += tl.load(counts + i * experts + expert, mask=expert < counted, other=0)
    earlier = everyone[None, :] < expert[:, None]
    start = tl.sum(tl.where(earlier, total[None, :], 0), axis=1)
    if c == 0:
        number = tl.sum(tl.where(everyone[None, :] == expert[:, None], total[None, :], 0), axis=1)
        first = tl.sum(tl.where(earlier, (total[None, :] + (TILE - 1)) // TILE, 0), axis=1)
        tl.store(offsets + expert, start, mask=expert <= experts)
        _cut(tiles, expert, first, (number + (TILE - 1)) // TILE, experts, limit, 32, TILE, start)
    place = start + before
    end = tl.minimum((c + 1) * stretch, pairs)
    for at in range(c * stretch, end, BLOCK):
        pair = at + tl.arange(0, BLOCK)
        choice = tl.load(chosen + pair, mask=pair < end, other=-1).to(tl.int32)
        hit = (choice[:, None] == expert[None, :]) & (expert < experts)[None, :]
        ones = hit.to(tl.int32)
        here = place[None, :] + tl.cumsum(ones, axis=0) - 1
        tl.store(order + here, pair[:, None], mask=hit)
        place += tl.sum(ones, axis=0)


@triton.jit
def cut_into_tiles(offsets, tiles, experts, limit, TILE: tl.constexpr, SOME: tl.constexpr, ALL: tl.constexpr):
    """The tiles of SOME experts from offsets that are known."""
    expert = tl.program_id(0) * SOME + tl.arange(0, SOME)
    everyone = tl.arange(0, ALL)
    real = everyone < experts
    rows = tl.load(offsets + everyone + 1, mask=real, other=0) - tl.load(offsets + everyone, mask=real, other=0)
    number = (rows + (TILE - 1)) // TILE
    first = tl.sum(tl.where(everyone[None, :] < expert[:, None], number[None, :], 0), axis=1)
    own = tl.sum(tl.where(everyone[None, :] == expert[:, None], number[None, :], 0), axis=1)
    start = tl.load(offsets + expert, mask=expert < experts, other=0)
    _cut(tiles, expert, first, own, experts, limit, 32, TILE, start)


def configurations(all_experts: int) -> list[Config]:
    """4096 comparisons a step: 32 a thread, and as many counted along the block."""
    some = min(16, all_experts)
    return [Config(BLOCK=256, SOME=some, num_warps=4, note="16 experts read a pair at once; a step is 256 pairs")]


def rows_a_tile(rows: int, experts: int) -> int:
    """Twice the mean number of rows of an expert, as a power of two from 16 to 128.

    128 rows feed the tensor cores. With few rows, time is that of reading the weights, up to about 180 rows an expert
    on an H200; room for twice the mean reads most experts' weights once, and the spare products cost nothing.
    """
    mean = -(-rows // max(1, min(rows, experts)))
    return int(max(16, min(128, triton.next_power_of_2(2 * mean))))


def tile_limit(rows: int, experts: int, tile: int) -> int:
    """As many tiles as `rows` rows of `experts` experts can at most have."""
    return (rows + min(rows, experts) * (tile - 1)) // tile


@torch.library.custom_op("llmbench::sort_by_expert", mutates_args=())
def _sort(chosen: Tensor, experts: int, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    chosen = chosen.contiguous()
    pairs = chosen.numel()
    limit = tile_limit(pairs, experts, tile)
    everyone = triton.next_power_of_2(experts)
    config = choose("place_choices", configurations(everyone))
    stretch = triton.cdiv(triton.cdiv(pairs, STRETCHES), config["BLOCK"]) * config["BLOCK"]
    stretches = triton.cdiv(pairs, stretch) if pairs else 0
    counts = empty(stretches, experts, like=chosen, dtype=torch.int32)
    order = empty(pairs, like=chosen, dtype=torch.int32)
    offsets = empty(experts + 1, like=chosen, dtype=torch.int32)
    tiles = empty(2, limit, like=chosen, dtype=torch.int32)
    if not pairs:
        return order, offsets.zero_(), tiles
    grid = (stretches, triton.cdiv(experts + 1, config["SOME"]))  # one more: it knows where all end
    launch(count_choices, grid, config, chosen, counts, pairs, experts, stretch)
    arguments = chosen, counts, order, offsets, tiles, pairs, experts, stretches, stretch, limit
    launch(place_choices, grid, config, *arguments, TILE=tile, ALL=everyone)
    return order, offsets, tiles


@_sort.register_fake
def _(chosen: Tensor, experts: int, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    limit = tile_limit(chosen.numel(), experts, tile)
    sizes = (chosen.numel(),), (experts + 1,), (2, limit)
    order, offsets, tiles = (chosen.new_empty(size, dtype=torch.int32) for size in sizes)
    return order, offsets, tiles


def sort_by_expert(chosen: Tensor, experts: int, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """(order, offsets, tiles) of chosen [t, k], int32 or int64 and not negative, in tiles of `tile` rows."""
    return _sort(chosen, experts, tile)


@torch.library.custom_op("llmbench::tiles_of", mutates_args=())
def _tiles_of(offsets: Tensor, rows: int, tile: int) -> Tensor:
    offsets = offsets.contiguous()
    experts = len(offsets) - 1
    limit = tile_limit(rows, experts, tile)
    tiles = empty(2, limit, like=offsets, dtype=torch.int32)
    everyone = triton.next_power_of_2(experts)
    some = min(16, everyone)
    config = Config(SOME=some, num_warps=4, note="one load of all offsets; 16 experts' tiles a program")
    grid = (triton.cdiv(experts + 1, some),)
    launch(cut_into_tiles, grid, config, offsets, tiles, experts, limit, TILE=tile, ALL=everyone)
    return tiles


@_tiles_of.register_fake
def _(offsets: Tensor, rows: int, tile: int) -> Tensor:
    return offsets.new_empty((2, tile_limit(rows, len(offsets) - 1, tile)), dtype=torch.int32)


def tiles_of(offsets: Tensor, rows: int, tile: int) -> Tensor:
    """The tiles of `rows` rows sorted by expert, of which expert e has those from offsets[e] to offsets[e + 1]."""
    return _tiles_of(offsets, rows, tile)
