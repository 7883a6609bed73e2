"""Sort rows by expert and divide each expert's rows into tiles, on the GPU without waiting for it.

The host does not know the number of rows of an expert, only an upper bound.

    order    [R]         the pairs token · k + slot, sorted by expert, and within an expert in their original order
    offsets  [E + 1]     expert e has the entries offsets[e] to offsets[e + 1] of `order`
    tiles    [2, limit]  the expert and the first row of each tile; expert -1 if there is no tile

The counting sort has two launches. A stretch is a run of consecutive pairs. In the first launch, each program counts
the pairs of one stretch that chose one of a few experts. In the second launch, each program adds up these counts to
find where the pairs of its stretch begin in `order`. It then writes its pairs there, one after another. There are no
atomics, so the order is always the same. An expert with n rows has ⌈n / TILE⌉ tiles. R rows of E experts therefore have
at most (R + min(E, R) · (TILE − 1)) / TILE tiles. This is the size of the grid. Programs without a tile do nothing.

Pairs whose expert is E or more (zero-computation experts) are not in `order`, so the end of `order` stays unwritten.
Shapes: chosen [t, k], R = t · k pairs, E experts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.launching import Config, choose, empty, launch

__all__ = ["max_tiles", "rows_per_tile", "sort_by_expert", "tiles_from_offsets"]

STRETCHES = 32  # greatest number of stretches; each program reads the counts of all stretches


# == Kernels ==


@triton.jit
def _cut(tiles, expert, first, number, experts, limit, STEP: tl.constexpr, TILE: tl.constexpr, start):
    """Write `number` tiles of each `expert` [X] into `tiles`, from index `first` on. The rows of an expert begin at
    `start`. The entries after the last tile become -1."""
    number = tl.where(expert == experts, limit - first, number)
    tile_expert = tl.where(expert < experts, expert, -1)[:, None]
    for i in range(0, tl.max(number, axis=0), STEP):
        tile = i + tl.arange(0, STEP)[None, :]
        inside = tile < number[:, None]
        tl.store(tiles + first[:, None] + tile, tile_expert, mask=inside)
        tl.store(tiles + limit + first[:, None] + tile, start[:, None] + tile * TILE, mask=inside)


@triton.jit
def count_choices(chosen, counts, pairs, experts, stretch, BLOCK: tl.constexpr, SOME: tl.constexpr):
    """One program counts, for stretch c and SOME experts e, the pairs that chose e. It writes them to counts[c, e]."""
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
    chosen, counts, order, offsets, tiles, pairs, experts, stretches, stretch, limit,
    TILE: tl.constexpr, BLOCK: tl.constexpr, SOME: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """One program writes the pairs of stretch c that chose one of SOME experts to their places in `order`.

    The programs of the first stretch also write offsets and tiles.
    """
    c = tl.program_id(0)
    expert = tl.program_id(1) * SOME + tl.arange(0, SOME)
    everyone = tl.arange(0, ALL)
    total = tl.zeros([ALL], tl.int32)
    before = tl.zeros([SOME], tl.int32)  # pairs of the same expert in earlier stretches
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
        position = place[None, :] + tl.cumsum(ones, axis=0) - 1
        tl.store(order + position, pair[:, None], mask=hit)
        place += tl.sum(ones, axis=0)


@triton.jit
def cut_into_tiles(offsets, tiles, experts, limit, TILE: tl.constexpr, SOME: tl.constexpr, ALL: tl.constexpr):
    """One program computes the tiles of SOME experts from `offsets`, and writes them."""
    expert = tl.program_id(0) * SOME + tl.arange(0, SOME)
    everyone = tl.arange(0, ALL)
    real = everyone < experts
    rows = tl.load(offsets + everyone + 1, mask=real, other=0) - tl.load(offsets + everyone, mask=real, other=0)
    number = (rows + (TILE - 1)) // TILE
    first = tl.sum(tl.where(everyone[None, :] < expert[:, None], number[None, :], 0), axis=1)
    own = tl.sum(tl.where(everyone[None, :] == expert[:, None], number[None, :], 0), axis=1)
    start = tl.load(offsets + expert, mask=expert < experts, other=0)
    _cut(tiles, expert, first, own, experts, limit, 32, TILE, start)


# == Configurations ==


def configurations(all_experts: int) -> list[Config]:
    """Return the candidate configurations. An iteration compares 256 pairs with up to 16 experts. These are 4096
    comparisons, 32 per thread. A thread also keeps a cumulative count for each comparison."""
    some = min(16, all_experts)
    return [Config(BLOCK=256, SOME=some, num_warps=4, note="an iteration compares 256 pairs with 16 experts")]


def rows_per_tile(rows: int, experts: int) -> int:
    """Return the rows of a tile: twice the mean number of rows per expert, as a power of two from 16 to 128.

    128 rows keep the tensor cores busy. Up to about 180 rows per expert on an H200, the time is spent on reading the
    weights. Most experts then have one tile, so their weights are read once. The unused rows of a tile cost no time.
    """
    mean = -(-rows // max(1, min(rows, experts)))
    return int(max(16, min(128, triton.next_power_of_2(2 * mean))))


def max_tiles(rows: int, experts: int, tile: int) -> int:
    """Return the greatest number of tiles that `rows` rows of `experts` experts can have."""
    return (rows + min(rows, experts) * (tile - 1)) // tile


# == Torch op ==


@torch.library.custom_op("llmbench::sort_by_expert", mutates_args=())
def _sort(chosen: Tensor, experts: int, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    chosen = chosen.contiguous()
    pairs = chosen.numel()
    limit = max_tiles(pairs, experts, tile)
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
    grid = (stretches, triton.cdiv(experts + 1, config["SOME"]))  # experts + 1 offsets: the last is the end of the rows
    launch(count_choices, grid, config, chosen, counts, pairs, experts, stretch)
    arguments = chosen, counts, order, offsets, tiles, pairs, experts, stretches, stretch, limit
    launch(place_choices, grid, config, *arguments, TILE=tile, ALL=everyone)
    return order, offsets, tiles


@_sort.register_fake
def _(chosen: Tensor, experts: int, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    limit = max_tiles(chosen.numel(), experts, tile)
    sizes = (chosen.numel(),), (experts + 1,), (2, limit)
    order, offsets, tiles = (chosen.new_empty(size, dtype=torch.int32) for size in sizes)
    return order, offsets, tiles


def sort_by_expert(chosen: Tensor, experts: int, tile: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (order, offsets, tiles) for chosen [t, k], with tiles of `tile` rows. chosen is int32 or int64 and not
    negative."""
    return _sort(chosen, experts, tile)


@torch.library.custom_op("llmbench::tiles_of", mutates_args=())
def _tiles_from_offsets(offsets: Tensor, rows: int, tile: int) -> Tensor:
    offsets = offsets.contiguous()
    experts = len(offsets) - 1
    limit = max_tiles(rows, experts, tile)
    tiles = empty(2, limit, like=offsets, dtype=torch.int32)
    everyone = triton.next_power_of_2(experts)
    some = min(16, everyone)
    config = Config(SOME=some, num_warps=4, note="one load of all offsets; tiles of 16 experts per program")
    grid = (triton.cdiv(experts + 1, some),)
    launch(cut_into_tiles, grid, config, offsets, tiles, experts, limit, TILE=tile, ALL=everyone)
    return tiles


@_tiles_from_offsets.register_fake
def _(offsets: Tensor, rows: int, tile: int) -> Tensor:
    return offsets.new_empty((2, max_tiles(rows, len(offsets) - 1, tile)), dtype=torch.int32)


def tiles_from_offsets(offsets: Tensor, rows: int, tile: int) -> Tensor:
    """Return the tiles of `rows` rows sorted by expert; expert e has the rows offsets[e] to offsets[e + 1]."""
    return _tiles_from_offsets(offsets, rows, tile)
