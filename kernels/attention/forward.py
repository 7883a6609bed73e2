"""Attention's forward kernel: online softmax over tiles of keys (Milakov and Gimelshein, arXiv 1805.02867; Dao, arXiv
2307.08691).

For each tile of keys: s = q kᵀ, m' = max(m, max s), p = 2^(s - m'), l' = l·2^(m - m') + Σp, o' = o·2^(m - m') + p v. m
is the running maximum of a query's scores, l the running sum, and o the running output; a prime marks the new value.
After the last tile, the result is o / l and the log-sum-exp is m + log l. A sink is a key without a value: m starts at
the sink's score, and l starts at 1.

The scale contains the factor log2(e), so that all exponentials have base 2. The backward pass also reads the
log-sum-exp with base 2. A conversion of the base would round a number with a large integer part, so the fraction would
lose digits.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.attention.tiles import (
    DEVICE,
    HOST,
    Problem,
    concurrent_heads,
    head_rows,
    load_tile,
    matrices,
    matrix_tiles,
    padded,
    phases,
    program_tile,
    split_width,
    visible,
)
from llmbench.kernels.launching import Config, architecture, choose, empty, launch
from llmbench.kernels.numeric import LOG2E, quick_tanh
from llmbench.kernels.products import dot

__all__ = ["forward"]

LN_2 = tl.constexpr(1 / LOG2E.value)


# == Kernels ==


@triton.jit
def _over_keys(
    total, m, o, q, q_rest, k_tiles, k_rest_tiles, v_tiles, k_row, v_row, start, stop, keys, positions, before, after,
    scale, cap, slope,
    MASKED: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr,
    BLOCK_N: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Update the running sum `total`, the running maximum m and the running output o with the keys from `start` to
    `stop`."""
    FIRST: tl.constexpr = WIDTH if REST == 0 else MAIN
    for n in range(start, stop, BLOCK_N):
        k = load_tile(k_tiles, n, keys, k_row, FIRST, BLOCK_N, MAIN, TMA, not MASKED)
        s = dot(q, k.T)
        if REST > 0:
            k_rest = load_tile(k_rest_tiles, n, keys, k_row, WIDTH - MAIN, BLOCK_N, REST, TMA, not MASKED)
            s = dot(q_rest, k_rest.T, s)
        columns = n + tl.arange(0, BLOCK_N)
        factor = scale
        if CAPPED or SLOPED:  # without them, the multiply-add in the argument of the exponential applies the scale
            s = s * scale
            factor = 1.0
            if CAPPED:
                s = quick_tanh(s, q.dtype == tl.float32) * cap
            if SLOPED:
                s += (tl.arange(0, BLOCK_N).to(tl.float32) * slope)[None, :]
        if MASKED:
            seen = visible(columns[None, :], positions[:, None], before, after, BEFORE, AFTER)
            s = tl.where(seen & (columns[None, :] < keys), s, float("-inf"))
        peak = tl.max(s, 1) * factor
        shift = 0.0
        if SLOPED:
            shift = (n - positions).to(tl.float32) * slope
            peak += shift
        top = tl.maximum(m, peak)
        level = top
        if MASKED:  # top is -∞ in a row that has no visible key so far
            level = tl.where(top == float("-inf"), 0.0, top)
        p = tl.exp2(s * factor - (level - shift)[:, None])
        shrink = tl.exp2(m - level)
        total = total * shrink + tl.sum(p, 1)
        v = load_tile(v_tiles, n, keys, v_row, VALUES, BLOCK_N, PADDED_VALUES, TMA, not MASKED)
        o = dot(p.to(v.dtype), v, o * shrink[:, None])
        m = top
    return total, m, o


@triton.jit
def attention_forward(
    q, q_end, k, k_end, v, out, lse, level, sinks, slopes, query_starts, key_starts,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, out_batch, out_head, out_row,
    lse_batch, lse_head, queries, keys, heads, all_heads, tiles, concurrent, before, after, scale, cap,
    GROUP: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    SINKS: tl.constexpr, PACKED: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr,
    VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One program computes BLOCK_M queries of one head. Parameters that end in `_batch`, `_head` and `_row` are strides
    in elements. `q_end` and `k_end` are the columns of q and k after the first MAIN."""
    tile, head = program_tile(tiles, all_heads, concurrent, AFTER and not BEFORE)
    batch = tl.cast(head // heads, tl.int64)
    head = tl.cast(head % heads, tl.int64)
    kv_head = head // GROUP
    out += head * out_head
    lse += head * lse_head
    level += head * lse_head
    q_start = 0
    k_start = 0
    if PACKED:
        q_start = tl.load(query_starts + batch)
        queries = tl.load(query_starts + batch + 1) - q_start
        out += tl.cast(q_start, tl.int64) * out_row
        lse += q_start
        level += q_start
        k_start = tl.load(key_starts + batch)
        keys = tl.load(key_starts + batch + 1) - k_start
    else:
        out += batch * out_batch
        lse += batch * lse_batch
        level += batch * lse_batch
    first = tile * BLOCK_M
    if first < queries:
        FIRST: tl.constexpr = WIDTH if REST == 0 else MAIN
        q_rows = head_rows(q, batch, head, q_start, q_batch, q_head, q_row, TMA)
        k_rows = head_rows(k, batch, kv_head, k_start, k_batch, k_head, k_row, TMA)
        v_rows = head_rows(v, batch, kv_head, k_start, v_batch, v_head, v_row, TMA)
        q_tiles = matrix_tiles(q_rows, queries, q_row, FIRST, BLOCK_M, MAIN, TMA)
        k_tiles = matrix_tiles(k_rows, keys, k_row, FIRST, BLOCK_N, MAIN, TMA)
        v_tiles = matrix_tiles(v_rows, keys, v_row, VALUES, BLOCK_N, PADDED_VALUES, TMA)
        q_tile = load_tile(q_tiles, first, queries, q_row, FIRST, BLOCK_M, MAIN, TMA, False)
        q_rest = q_tile
        k_rest_tiles = k_tiles
        if REST > 0:
            q_rows = head_rows(q_end, batch, head, q_start, q_batch, q_head, q_row, TMA)
            k_rows = head_rows(k_end, batch, kv_head, k_start, k_batch, k_head, k_row, TMA)
            q_rest_tiles = matrix_tiles(q_rows, queries, q_row, WIDTH - MAIN, BLOCK_M, REST, TMA)
            q_rest = load_tile(q_rest_tiles, first, queries, q_row, WIDTH - MAIN, BLOCK_M, REST, TMA, False)
            k_rest_tiles = matrix_tiles(k_rows, keys, k_row, WIDTH - MAIN, BLOCK_N, REST, TMA)

        rows = first + tl.arange(0, BLOCK_M)
        shift = keys - queries
        positions = rows + shift
        total = tl.zeros([BLOCK_M], tl.float32)
        m = total - float("inf")
        if SINKS:
            total += 1.0
            m = tl.zeros([BLOCK_M], tl.float32) + tl.load(sinks + head).to(tl.float32) * LOG2E
        o = tl.zeros([BLOCK_M, PADDED_VALUES], tl.float32)
        slope = 0.0
        if SLOPED:
            slope = tl.load(slopes + head).to(tl.float32) * LOG2E

        last = tl.minimum(first + BLOCK_M, queries) - 1
        lo, a, b, hi = phases(first, last, shift, before, after, keys, BLOCK_N, BEFORE, AFTER)
        for phase in tl.static_range(0 if BEFORE else 1, 3):
            begin = lo if phase == 0 else (a if phase == 1 else b)
            end = a if phase == 0 else (b if phase == 1 else hi)
            total, m, o = _over_keys(
                total, m, o, q_tile, q_rest, k_tiles, k_rest_tiles, v_tiles, k_row, v_row, begin, end, keys, positions,
                before, after, scale, cap, slope, phase != 1, BEFORE, AFTER, CAPPED, SLOPED, WIDTH, MAIN, REST, VALUES,
                PADDED_VALUES, BLOCK_N, TMA,
            )  # fmt: skip

        inside = rows < queries
        total = tl.where(total > 0.0, total, 1.0)  # a query that sees no key has o = 0 and m = -∞
        m += tl.log2(total)
        tl.store(level + rows, m, mask=inside)
        tl.store(lse + rows, m * LN_2, mask=inside)
        o = o * (1.0 / total)[:, None]  # one division per row and not per value
        c = tl.arange(0, PADDED_VALUES)
        place = out + rows[:, None] * tl.cast(out_row, tl.int64) + c[None, :]
        tl.store(place, o.to(out.dtype.element_ty), mask=inside[:, None] & (c[None, :] < VALUES))


# == Configurations and launcher ==


def configurations(width: int, values: int, element: int, arch: int, tma: int) -> list[Config]:
    """Return the candidate configurations. `width` and `values` are padded widths; `element` is bytes per element;
    `tma` says where descriptors are made on GPUs that have them.

    Above width 64, one block runs per multiprocessor. The 8 warps of a block are two warpgroups of 64 query rows each:
    one warpgroup computes a softmax while the other multiplies. With 4 warps, a thread would hold 128 more
    accumulators, and registers would spill.
    """

    tma = tma if arch >= 90 else 0

    def config(m: int, n: int, warps: int, stages: int, note: str, tma: int = tma) -> Config:
        return Config(BLOCK_M=m, BLOCK_N=n, TMA=tma, num_warps=warps, num_stages=stages, note=note)

    wide = max(width, values)
    if arch < 90 or element == 4:
        if wide <= 128:
            return [config(128, 64 if element == 2 else 32, 8, 2, "the largest tiles that fit in shared memory")]
        if wide > 256:
            return [config(32, 16, 4, 1, "the largest tiles that fit in shared memory")]
        return [config(64, 32 if element == 2 else 16, 8, 2, "the largest tiles that fit in shared memory")]
    if wide <= 64:
        return [
            config(
                128,
                64,
                8,
                3,
                "two blocks of at most 128 registers per thread: one computes a softmax while the other multiplies",
            ),
            config(128, 128, 8, 2, "half as many softmax steps; one block per multiprocessor"),
            config(64, 64, 4, 3, "three blocks per multiprocessor; keys and values are read twice as often"),
        ]
    if width <= 192 and values <= 128:
        candidates = [
            config(
                128, 128, 8, 2, "the widest tile of keys that registers and shared memory allow: fewest softmax steps"
            ),
            config(128, 64, 8, 3, "half the scores per thread, a deeper pipeline"),
        ]
        if tma == HOST.value:
            note = "each program makes its descriptors: less work for the launcher"
            candidates.append(config(128, 128, 8, 2, note, tma=DEVICE.value))
        if width <= 128:
            candidates.append(config(128, 64, 8, 3, "cp.async in place of TMA: no descriptors to create", tma=0))
        return candidates
    if wide > 256:
        return [config(64, 32, 8, 2, "accumulators take half the registers; 192 KiB of shared memory")]
    return [
        config(128, 64, 8, 2, "accumulators take half the registers, so a tile has 64 keys; 192 KiB of shared memory")
    ]


def forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
    """Launch the kernel, which writes `out` [B, N, S, V], or [tokens, N, V] if packed.

    Return the log-sum-exp with base e and with base 2. Both are [B, N, S], or [N, tokens] if packed.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    batch, queries, keys = problem[:3]
    group, width, v_width, element = heads // kv_heads, q.shape[-1], v.shape[-1], q.element_size()
    shape = (heads, q.shape[0]) if problem.packed else (batch, heads, queries)
    lse, level = (empty(*shape, like=q, dtype=torch.float32) for _ in range(2))
    parts = split_width(width)
    widths = sum(parts), padded(v_width)
    choices = configurations(*widths, element, architecture(q.device), problem.tma(max(widths)))
    config = choose("attention_forward", choices)
    tiles = triton.cdiv(queries, config["BLOCK_M"])
    concurrent = group * concurrent_heads(keys * (width + v_width) * element, batch * kv_heads)
    launch(
        attention_forward,
        (tiles * batch * heads,),
        config,
        *matrices(q, parts, config["BLOCK_M"], config),
        *matrices(k, parts, config["BLOCK_N"], config),
        *matrices(v, (padded(v_width),), config["BLOCK_N"], config),
        *(out, lse, level, problem.sinks, problem.slopes, problem.query_starts, problem.key_starts),
        *problem.strides(q, k, v, out),
        *problem.row_strides(lse),
        *(queries, keys, heads, batch * heads, tiles, concurrent),
        *problem.reach.as_arguments(),
        *problem.factors(),
        GROUP=group,
        SINKS=problem.sinks is not None,
        **problem.constants(width, v_width),
    )
    return lse, level
