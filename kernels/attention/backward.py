"""Attention's backward kernels (Dao, arXiv 2307.08691, section 3.1.2).

Probabilities are not stored; p = exp(s - lse) recomputes them from the scores and the log-sum-exp:

    dv = pᵀ do        dp = do vᵀ        ds = p ∘ (dp - delta)        dq = scale · ds k        dk = scale · dsᵀ q

dx is the gradient of x, and ∘ is the elementwise product. delta = Σ do ∘ o - dlse is one number per query and head, and
`attention_delta` computes it. Two kernels follow. For each tile of keys, the first computes dk and dv. For each tile of
queries, the second computes dq. Together they compute 7 matrix products; a single kernel would compute 5. But a single
kernel would sum dq by atomic additions in fp32, whose order changes from run to run, or its programs would wait for
each other. With two kernels, each gradient is written once in its own format, and the accumulators fit in registers.
One program sums the gradients of all query heads that share a key head. Results therefore repeat exactly.

A single kernel with atomic additions was compiled as a trial, for tiles of 64 queries and 128 keys and heads of 128.
By the cycle model of `kernels inspect`, one tile needs 2,960 cycles with Triton 3.9.0 (40 B of spills per thread) and
3,200 with 3.6.0 (296 B), compared with 3,584 for the two kernels. The model does not include the atomic additions.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.attention.tiles import (
    Problem,
    concurrent_heads,
    group_tiles,
    head_rows,
    load_group_tile,
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

__all__ = ["TALLEST", "backward"]

TALLEST = tl.constexpr(128)  # rows of the tallest tile of queries; `level` and `delta` are padded to a multiple of this


# == Kernels ==


@triton.jit
def attention_delta(
    dout, out, lse, dlse, sinks, level, delta, dsinks, query_starts,
    d_batch, d_head, d_row, o_batch, o_head, o_row, lse_batch, lse_head, level_batch, level_head, queries, heads,
    all_heads,
    PACKED: tl.constexpr, VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Compute `delta`, `level` and the sink's gradient. One program computes BLOCK_M rows of one head, and stores the
    sum of the sink's gradient over these rows.

    `level` is the log-sum-exp with base 2, or ∞ for a query that sees no key. A sink is a key with value 0, so its ds
    is -p · delta.
    """
    program = tl.program_id(0)
    first = program // all_heads * BLOCK_M
    which = tl.cast(program % all_heads, tl.int64)
    batch = which // heads
    head = which % heads
    dout += head * d_head
    out += head * o_head
    level += head * level_head
    delta += head * level_head
    at_lse = head * lse_head
    if PACKED:
        start = tl.load(query_starts + batch)
        queries = tl.load(query_starts + batch + 1) - start
        dout += tl.cast(start, tl.int64) * d_row
        out += tl.cast(start, tl.int64) * o_row
        at_lse += start
        level += (start // TALLEST + batch) * TALLEST
        delta += (start // TALLEST + batch) * TALLEST
    else:
        dout += batch * d_batch
        out += batch * o_batch
        at_lse += batch * lse_batch
        level += batch * level_batch
        delta += batch * level_batch
    r = first + tl.arange(0, BLOCK_M)
    c = tl.arange(0, PADDED_VALUES)
    exists = r < queries
    inside = exists[:, None] & (c[None, :] < VALUES)
    d = tl.load(dout + r[:, None] * tl.cast(d_row, tl.int64) + c[None, :], mask=inside, other=0.0).to(tl.float32)
    o = tl.load(out + r[:, None] * tl.cast(o_row, tl.int64) + c[None, :], mask=inside, other=0.0).to(tl.float32)
    value = tl.sum(d * o, 1)
    if dlse is not None:
        value -= tl.load(dlse + at_lse + r, mask=exists, other=0.0)
    level_row = tl.load(lse + at_lse + r, mask=exists, other=float("inf"))
    # p = 2^(s - ∞) = 0 for a query that sees no key
    level_row = tl.where(level_row == float("-inf"), float("inf"), level_row)
    in_tile = r < (queries + TALLEST - 1) // TALLEST * TALLEST  # the next kernels read whole tiles
    tl.store(delta + r, value, mask=in_tile)
    tl.store(level + r, level_row, mask=in_tile)
    if sinks is not None:
        p = tl.exp2(tl.load(sinks + head).to(tl.float32) * LOG2E - level_row)
        tl.store(dsinks + program, -tl.sum(p * value, 0))


@triton.jit
def _probabilities(
    s, level, bias, at_keys, positions, before, after, scale, cap,
    MASKED: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """Return p and the derivative of the soft cap, computed from raw scores `s` = q kᵀ. The log-sum-exp `level` and the
    positions of keys and queries are broadcast to the shape of the scores.

    ALiBi's bias, slope · (key - position), is the sum of two parts. Each depends on one dimension of the tile. `bias`
    is the first part. The caller has subtracted the second part from `level`, so one addition per score remains.
    """
    cap_slope = 1.0
    if CAPPED:
        s = quick_tanh(s * scale, EXACT)
        cap_slope = 1.0 - s * s
        s = s * cap
    else:
        s = s * scale
    if SLOPED:
        s += bias
    p = tl.exp2(s - level)
    if MASKED:
        p = tl.where(visible(at_keys, positions, before, after, BEFORE, AFTER), p, 0.0)
    return p, cap_slope


@triton.jit
def _over_queries(
    dk, dk_rest, dv, k, k_rest, v, q_tiles, q_rest_tiles, do_tiles, level, delta, slopes,
    q_head, q_row, do_head, do_row, level_head, start, stop, queries, first_key, before, after, scale, cap,
    GROUP: tl.constexpr, MASKED: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr,
    SLOPED: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUES: tl.constexpr,
    PADDED_VALUES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr, DK: tl.constexpr,
    DV: tl.constexpr,
):  # fmt: skip
    """Add the contributions of the queries from `start` to `stop` to dk and dv of a tile of keys.

    Scores are transposed: [keys, queries]. `first_key` is the position of the tile's first key minus the position of
    the first query."""
    FIRST: tl.constexpr = WIDTH if REST == 0 else MAIN
    steps = tl.maximum(stop - start + BLOCK_M - 1, 0) // BLOCK_M
    total = steps * GROUP
    # The test keeps the path without a turn out of the loop's exit, where products still run. Otherwise ptxas waits for
    # each product (C7515).
    if total > 0:
        # A single loop covers all heads, so that the loads of the next head start before the current head ends.
        for step in range(total):
            member = 0
            m = start + step * BLOCK_M
            if GROUP > 1:
                member = step // tl.maximum(steps, 1)
                m -= member * steps * BLOCK_M
            rows = m + tl.arange(0, BLOCK_M)
            q = load_group_tile(q_tiles, member, m, queries, q_head, q_row, FIRST, BLOCK_M, MAIN, TMA)
            s = dot(k, q.T)
            q_rest = q
            if REST > 0:
                q_rest = load_group_tile(
                    q_rest_tiles, member, m, queries, q_head, q_row, WIDTH - MAIN, BLOCK_M, REST, TMA
                )
                s = dot(k_rest, q_rest.T, s)
            do = load_group_tile(do_tiles, member, m, queries, do_head, do_row, VALUES, BLOCK_M, PADDED_VALUES, TMA)
            if DK:
                dp = dot(v, do.T)  # before p is computed, so that fewer values stay in registers
            level_row = tl.load(level + member * level_head + rows)
            bias = 0.0
            if SLOPED:
                slope = tl.load(slopes + member).to(tl.float32) * LOG2E
                bias = (tl.arange(0, BLOCK_N).to(tl.float32) * slope)[:, None]
                level_row -= (first_key - rows).to(tl.float32) * slope
            p, cap_slope = _probabilities(
                s, level_row[None, :], bias, (first_key + tl.arange(0, BLOCK_N))[:, None], rows[None, :],
                before, after, scale, cap,
                MASKED, BEFORE, AFTER, CAPPED, SLOPED, q.dtype == tl.float32,
            )  # fmt: skip
            if DV:
                dv = dot(p.to(do.dtype), do, dv)
            if DK:
                delta_row = tl.load(delta + member * level_head + rows)
                ds = (p * (dp - delta_row[None, :]) * cap_slope).to(q.dtype)
                dk = dot(ds, q, dk)
                if REST > 0:
                    dk_rest = dot(ds, q_rest, dk_rest)
    return dk, dk_rest, dv


@triton.jit
def attention_backward_keys(
    q, q_end, k, k_end, v, dout, dk, dv, level, delta, slopes, query_starts, key_starts,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, do_batch, do_head, do_row,
    dk_batch, dk_head, dk_row, dv_batch, dv_head, dv_row, level_batch, level_head,
    queries, keys, kv_heads, all_heads, tiles, concurrent, before, after, scale, cap, natural_scale,
    GROUP: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    PACKED: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUES: tl.constexpr,
    PADDED_VALUES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr,
    PASSES: tl.constexpr, PASS: tl.constexpr, LOOPS: tl.constexpr,
):  # fmt: skip
    """One program computes dk and dv of BLOCK_N keys of one key head, from all queries of the heads that share it.

    With PASSES = 2, the program computes dk in one loop and dv in a second loop, because registers cannot hold both
    sums.
    """
    # Under a causal mask the first keys have the most work, so their tiles come first.
    tile, kv_head = program_tile(tiles, all_heads, concurrent, False)
    batch = tl.cast(kv_head // kv_heads, tl.int64)
    kv_head = tl.cast(kv_head % kv_heads, tl.int64)
    q_start = 0
    k_start = 0
    if PACKED:
        q_start = tl.load(query_starts + batch)
        queries = tl.load(query_starts + batch + 1) - q_start
        level += (q_start // TALLEST + batch) * TALLEST
        delta += (q_start // TALLEST + batch) * TALLEST
        k_start = tl.load(key_starts + batch)
        keys = tl.load(key_starts + batch + 1) - k_start
    else:
        level += batch * level_batch
        delta += batch * level_batch
    first = tile * BLOCK_N
    if first < keys:
        FIRST: tl.constexpr = WIDTH if REST == 0 else MAIN
        DK: tl.constexpr = PASSES == 1 or PASS == 0
        DV: tl.constexpr = PASSES == 1 or PASS == 1
        k_rows = head_rows(k, batch, kv_head, k_start, k_batch, k_head, k_row, TMA)
        v_rows = head_rows(v, batch, kv_head, k_start, v_batch, v_head, v_row, TMA)
        k_tiles = matrix_tiles(k_rows, keys, k_row, FIRST, BLOCK_N, MAIN, TMA)
        v_tiles = matrix_tiles(v_rows, keys, v_row, VALUES, BLOCK_N, PADDED_VALUES, TMA)
        k_tile = load_tile(k_tiles, first, keys, k_row, FIRST, BLOCK_N, MAIN, TMA, False)
        v_tile = load_tile(v_tiles, first, keys, v_row, VALUES, BLOCK_N, PADDED_VALUES, TMA, False)
        k_rest = k_tile
        if REST > 0:
            k_rows = head_rows(k_end, batch, kv_head, k_start, k_batch, k_head, k_row, TMA)
            k_rest_tiles = matrix_tiles(k_rows, keys, k_row, WIDTH - MAIN, BLOCK_N, REST, TMA)
            k_rest = load_tile(k_rest_tiles, first, keys, k_row, WIDTH - MAIN, BLOCK_N, REST, TMA, False)

        positions = first + tl.arange(0, BLOCK_N)
        shift = keys - queries
        last = tl.minimum(first + BLOCK_N, keys) - 1
        # A key is seen by the queries from `after` positions before the key to `before` positions after the key.
        # Therefore the call exchanges the two bounds. Rows past the last query are 0 and have level ∞, so their p is 0
        # without a mask.
        lo, a, b, hi = phases(first, last, -shift, after, before, queries, BLOCK_M, AFTER, BEFORE)
        if not BEFORE:
            b = hi
        dk_sum = tl.zeros([BLOCK_N, MAIN], tl.float32)
        dk_rest_sum = tl.zeros([BLOCK_N, REST if REST > 0 else 1], tl.float32)
        dv_sum = tl.zeros([BLOCK_N, PADDED_VALUES], tl.float32)
        first_head = kv_head * GROUP
        level += first_head * level_head
        delta += first_head * level_head
        if SLOPED:
            slopes += first_head
        q_rows = head_rows(q, batch, first_head, q_start, q_batch, q_head, q_row, TMA)
        do_rows = head_rows(dout, batch, first_head, q_start, do_batch, do_head, do_row, TMA)
        q_tiles = group_tiles(q_rows, GROUP, queries, q_head, q_row, FIRST, BLOCK_M, MAIN, TMA)
        do_tiles = group_tiles(do_rows, GROUP, queries, do_head, do_row, VALUES, BLOCK_M, PADDED_VALUES, TMA)
        q_rest_tiles = q_tiles
        if REST > 0:
            q_rows = head_rows(q_end, batch, first_head, q_start, q_batch, q_head, q_row, TMA)
            q_rest_tiles = group_tiles(q_rows, GROUP, queries, q_head, q_row, WIDTH - MAIN, BLOCK_M, REST, TMA)
        MASKED: tl.constexpr = BEFORE or AFTER
        for loop in tl.static_range(LOOPS):
            if LOOPS == 1 or loop == 1 or (loop == 0 and AFTER) or (loop == 2 and BEFORE):
                begin = lo if loop == 0 else (a if loop == 1 else b)
                end = hi if LOOPS == 1 or loop == 2 else (a if loop == 0 else b)
                dk_sum, dk_rest_sum, dv_sum = _over_queries(
                    dk_sum, dk_rest_sum, dv_sum, k_tile, k_rest, v_tile, q_tiles, q_rest_tiles, do_tiles,
                    level, delta, slopes, q_head, q_row, do_head, do_row, level_head, begin, end, queries,
                    first - shift, before, after, scale, cap, GROUP,
                    MASKED and (LOOPS == 1 or loop != 1), BEFORE, AFTER, CAPPED, SLOPED, WIDTH, MAIN, REST, VALUES,
                    PADDED_VALUES, BLOCK_M, BLOCK_N, TMA, DK, DV,
                )  # fmt: skip

        # Addresses are computed here, after the loops, because the loops need every register.
        start = 0
        if PACKED:
            start = tl.load(key_starts + batch)
        else:
            dk += batch * dk_batch
            dv += batch * dv_batch
        rows = positions[:, None]
        inside = rows < keys
        if DK:
            c = tl.arange(0, MAIN)[None, :]
            at = dk + kv_head * dk_head + (start + rows) * tl.cast(dk_row, tl.int64)
            tl.store(at + c, (dk_sum * natural_scale).to(dk.dtype.element_ty), mask=inside & (c < FIRST))
            if REST > 0:
                c = MAIN + tl.arange(0, REST)[None, :]
                tl.store(at + c, (dk_rest_sum * natural_scale).to(dk.dtype.element_ty), mask=inside & (c < WIDTH))
        if DV:
            c = tl.arange(0, PADDED_VALUES)[None, :]
            at = dv + kv_head * dv_head + (start + rows) * tl.cast(dv_row, tl.int64)
            tl.store(at + c, dv_sum.to(dv.dtype.element_ty), mask=inside & (c < VALUES))


@triton.jit
def _over_keys(
    dq, dq_rest, q, q_rest, do, level_row, delta_row, k_tiles, k_rest_tiles, v_tiles, k_row, v_row, start, stop, keys,
    positions, before, after, scale, cap, slope,
    MASKED: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr,
    BLOCK_N: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Add the contributions of the keys from `start` to `stop` to dq of a tile of queries."""
    FIRST: tl.constexpr = WIDTH if REST == 0 else MAIN
    for n in range(start, stop, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        k = load_tile(k_tiles, n, keys, k_row, FIRST, BLOCK_N, MAIN, TMA, not MASKED)
        s = dot(q, k.T)
        k_rest = k
        if REST > 0:
            k_rest = load_tile(k_rest_tiles, n, keys, k_row, WIDTH - MAIN, BLOCK_N, REST, TMA, not MASKED)
            s = dot(q_rest, k_rest.T, s)
        v = load_tile(v_tiles, n, keys, v_row, VALUES, BLOCK_N, PADDED_VALUES, TMA, not MASKED)
        dp = dot(do, v.T)
        level = level_row
        bias = 0.0
        if SLOPED:
            bias = (tl.arange(0, BLOCK_N).to(tl.float32) * slope)[None, :]
            level -= (n - positions).to(tl.float32) * slope
        p, cap_slope = _probabilities(
            s, level[:, None], bias, columns[None, :], positions[:, None], before, after, scale, cap,
            MASKED, BEFORE, AFTER, CAPPED, SLOPED, q.dtype == tl.float32,
        )  # fmt: skip
        if MASKED:
            p = tl.where(columns[None, :] < keys, p, 0.0)  # p could be ∞ past the last key, and ∞ · 0 is NaN
        ds = (p * (dp - delta_row[:, None]) * cap_slope).to(q.dtype)
        dq = dot(ds, k, dq)
        if REST > 0:
            dq_rest = dot(ds, k_rest, dq_rest)
    return dq, dq_rest


@triton.jit
def attention_backward_queries(
    q, q_end, k, k_end, v, dout, dq, level, delta, slopes, query_starts, key_starts,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, do_batch, do_head, do_row,
    dq_batch, dq_head, dq_row, level_batch, level_head,
    queries, keys, heads, all_heads, tiles, concurrent, before, after, scale, cap, natural_scale,
    GROUP: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    PACKED: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUES: tl.constexpr,
    PADDED_VALUES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """One program computes dq of BLOCK_M queries of one head."""
    tile, head = program_tile(tiles, all_heads, concurrent, AFTER and not BEFORE)
    batch = tl.cast(head // heads, tl.int64)
    head = tl.cast(head % heads, tl.int64)
    kv_head = head // GROUP
    dq += head * dq_head
    level += head * level_head
    delta += head * level_head
    q_start = 0
    k_start = 0
    if PACKED:
        q_start = tl.load(query_starts + batch)
        queries = tl.load(query_starts + batch + 1) - q_start
        dq += tl.cast(q_start, tl.int64) * dq_row
        level += (q_start // TALLEST + batch) * TALLEST
        delta += (q_start // TALLEST + batch) * TALLEST
        k_start = tl.load(key_starts + batch)
        keys = tl.load(key_starts + batch + 1) - k_start
    else:
        dq += batch * dq_batch
        level += batch * level_batch
        delta += batch * level_batch
    first = tile * BLOCK_M
    if first < queries:
        FIRST: tl.constexpr = WIDTH if REST == 0 else MAIN
        q_rows = head_rows(q, batch, head, q_start, q_batch, q_head, q_row, TMA)
        do_rows = head_rows(dout, batch, head, q_start, do_batch, do_head, do_row, TMA)
        k_rows = head_rows(k, batch, kv_head, k_start, k_batch, k_head, k_row, TMA)
        v_rows = head_rows(v, batch, kv_head, k_start, v_batch, v_head, v_row, TMA)
        q_tiles = matrix_tiles(q_rows, queries, q_row, FIRST, BLOCK_M, MAIN, TMA)
        do_tiles = matrix_tiles(do_rows, queries, do_row, VALUES, BLOCK_M, PADDED_VALUES, TMA)
        k_tiles = matrix_tiles(k_rows, keys, k_row, FIRST, BLOCK_N, MAIN, TMA)
        v_tiles = matrix_tiles(v_rows, keys, v_row, VALUES, BLOCK_N, PADDED_VALUES, TMA)
        q_tile = load_tile(q_tiles, first, queries, q_row, FIRST, BLOCK_M, MAIN, TMA, False)
        do_tile = load_tile(do_tiles, first, queries, do_row, VALUES, BLOCK_M, PADDED_VALUES, TMA, False)
        q_rest = q_tile
        k_rest_tiles = k_tiles
        if REST > 0:
            q_rows = head_rows(q_end, batch, head, q_start, q_batch, q_head, q_row, TMA)
            k_rows = head_rows(k_end, batch, kv_head, k_start, k_batch, k_head, k_row, TMA)
            q_rest_tiles = matrix_tiles(q_rows, queries, q_row, WIDTH - MAIN, BLOCK_M, REST, TMA)
            q_rest = load_tile(q_rest_tiles, first, queries, q_row, WIDTH - MAIN, BLOCK_M, REST, TMA, False)
            k_rest_tiles = matrix_tiles(k_rows, keys, k_row, WIDTH - MAIN, BLOCK_N, REST, TMA)

        rows = first + tl.arange(0, BLOCK_M)
        inside = rows < queries
        level_row = tl.load(level + rows)
        delta_row = tl.load(delta + rows)
        slope = 0.0
        if SLOPED:
            slope = tl.load(slopes + head).to(tl.float32) * LOG2E
        shift = keys - queries
        last = tl.minimum(first + BLOCK_M, queries) - 1
        lo, a, b, hi = phases(first, last, shift, before, after, keys, BLOCK_N, BEFORE, AFTER)
        dq_sum = tl.zeros([BLOCK_M, MAIN], tl.float32)
        dq_rest_sum = tl.zeros([BLOCK_M, REST if REST > 0 else 1], tl.float32)
        for phase in tl.static_range(0 if BEFORE else 1, 3):
            begin = lo if phase == 0 else (a if phase == 1 else b)
            end = a if phase == 0 else (b if phase == 1 else hi)
            dq_sum, dq_rest_sum = _over_keys(
                dq_sum, dq_rest_sum, q_tile, q_rest, do_tile, level_row, delta_row, k_tiles, k_rest_tiles, v_tiles,
                k_row, v_row, begin, end, keys, rows + shift, before, after, scale, cap, slope,
                phase != 1, BEFORE, AFTER, CAPPED, SLOPED, WIDTH, MAIN, REST, VALUES, PADDED_VALUES, BLOCK_N, TMA,
            )  # fmt: skip

        inside = inside[:, None]
        c = tl.arange(0, MAIN)[None, :]
        at = dq + rows[:, None] * tl.cast(dq_row, tl.int64)
        tl.store(at + c, (dq_sum * natural_scale).to(dq.dtype.element_ty), mask=inside & (c < FIRST))
        if REST > 0:
            c = MAIN + tl.arange(0, REST)[None, :]
            tl.store(at + c, (dq_rest_sum * natural_scale).to(dq.dtype.element_ty), mask=inside & (c < WIDTH))


# == Configurations and launcher ==


def key_configurations(
    width: int, values: int, element: int, arch: int, tma: int, plain: bool, masked: bool
) -> list[Config]:
    """Return the candidate configurations for dk and dv. `width` and `values` are padded widths; `element` is bytes per
    element; `tma` says where descriptors are made; `plain` and `masked` describe the problem.

    The accumulators of dk and dv stay in registers for the whole loop, together with two tiles of scores. With 128 keys
    and 8 warps, a warpgroup has 64 rows. In a problem that is not `plain`, each score also needs a bound, a slope or
    the derivative of the soft cap. Then only half as many scores fit in registers.

    The shipped configurations mask every tile. Separate loops (LOOPS=3) save the mask's instructions, but ptxas 12.8
    then waits for each matrix product in most shapes, so they are candidates.
    """
    tma = tma if arch >= 90 else 0

    def config(m: int, n: int, warps: int, stages: int, note: str, passes: int = 1, loops: int = 1) -> Config:
        blocks = {"BLOCK_M": m, "BLOCK_N": n, "TMA": tma, "PASSES": passes, "LOOPS": loops}
        return Config(num_warps=warps, num_stages=stages, note=note, **blocks)

    wide = max(width, values)
    two_passes = "dk and dv in separate passes, {} accumulators per thread: eight products in place of seven"
    largest = "the largest tiles that fit in shared memory"
    if arch < 90 or element == 4:
        if wide <= 128:
            return [config(32, 64, 8, 2, largest)]
        if wide > 256:
            return [config(16, 16, 4, 1, largest, passes=2)]
        if tma:
            stages = 1 if arch >= 100 else 2  # on sm_100, scores need shared memory too
            return [config(16, 64, 8, stages, largest, passes=2)]
        return [config(32 if element == 2 else 16, 32, 8, 1, largest, passes=2)]
    if wide <= 64:
        candidates = [
            config(64, 128, 8, 2, "64 rows per warpgroup; half as many accumulators as for heads of 128"),
            config(64, 64, 4, 2, "two blocks per multiprocessor: one computes a softmax while the other multiplies"),
        ]
    elif wide <= 128 and plain:
        candidates = [config(64, 128, 8, 2, "64 + 64 accumulators and 32 + 32 scores per thread use all registers")]
    elif wide <= 128:
        candidates = [
            config(32, 128, 8, 2, "64 + 64 accumulators, 16 + 16 scores, and bounds or slopes per thread"),
            config(32, 64, 4, 2, "as many values per thread as with 128 keys; two blocks per multiprocessor"),
        ]
    elif width <= 192 and values <= 128:
        candidates = [config(64, 128, 8, 2, two_passes.format("64 or 96"), passes=2)]
        if plain:
            candidates.insert(0, config(32, 64, 4, 2, "96 + 64 accumulators, 16 + 16 scores per thread; two blocks"))
    elif wide <= 256:
        return [config(16, 128, 8, 2, two_passes.format(128), passes=2)]
    else:
        return [config(16, 64, 8, 2, two_passes.format(128), passes=2)]
    if masked:
        first = candidates[0]
        loops = "separate loops for tiles without a mask: fewer instructions, if ptxas does not serialise the products"
        rows, keys = first["BLOCK_M"], first["BLOCK_N"]
        candidates.append(config(rows, keys, first.num_warps, 2, loops, passes=first["PASSES"], loops=3))
    return candidates


def query_configurations(width: int, values: int, element: int, arch: int, tma: int) -> list[Config]:
    """Return the candidate configurations for dq. A program keeps one accumulator and two tiles of scores in registers,
    and each warpgroup has 64 query rows."""
    tma = tma if arch >= 90 else 0

    def config(m: int, n: int, warps: int, stages: int, note: str) -> Config:
        return Config(BLOCK_M=m, BLOCK_N=n, TMA=tma, num_warps=warps, num_stages=stages, note=note)

    wide = max(width, values)
    if arch < 90 or element == 4:
        if wide <= 128:
            return [config(64, 32, 8, 2, "the largest tiles that fit in shared memory")]
        stages = 1 if arch >= 100 else 2
        return [config(64 if tma or element == 2 else 32, 16, 8, stages, "the largest tiles that fit in shared memory")]
    if wide <= 64:
        return [
            config(128, 64, 8, 2, "two blocks per multiprocessor under a causal mask"),
            config(64, 64, 4, 2, "four blocks per multiprocessor"),
        ]
    if width <= 192 and values <= 128:
        return [config(128, 64, 8, 2, "64 or 96 accumulators, 32 + 32 scores per thread")]
    if wide > 256:
        return [config(64, 16, 8, 2, "128 accumulators per thread; q and do fill 128 KiB of shared memory")]
    return [config(128, 16, 8, 2, "128 accumulators leave room for 8 + 8 scores per thread; 160 KiB of shared memory")]


def backward(
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    gradients: tuple[Tensor, Tensor, Tensor],
    problem: Problem,
) -> Tensor | None:
    """Launch the kernels, which write dq, dk and dv into `gradients`. Return the gradient of the sinks [N] in fp32, or
    None without sinks.

    `lse` is the log-sum-exp with base 2; `dlse` is the gradient of the log-sum-exp with base e.
    """
    dq, dk, dv = gradients
    heads, kv_heads = q.shape[1], k.shape[1]
    batch, queries, keys = problem[:3]
    group, width, v_width, element = heads // kv_heads, q.shape[-1], v.shape[-1], q.element_size()
    strides, starts = problem.strides, (problem.query_starts, problem.key_starts)
    parts = split_width(width)
    widths = sum(parts), padded(v_width)
    sizes = *widths, element, architecture(q.device), problem.tma(max(widths))

    tallest = TALLEST.value
    if problem.packed:
        shape: tuple[int, ...] = heads, (q.shape[0] // tallest + batch) * tallest
    else:
        shape = batch, heads, triton.cdiv(queries, tallest) * tallest
    level, delta = empty(*shape, like=lse), empty(*shape, like=lse)
    level_strides = problem.row_strides(level)
    rows = max(16, min(128, 4096 // padded(v_width)))
    config = choose("attention_delta", [Config(BLOCK_M=rows, num_warps=4, note="32 values per thread and tensor")])
    blocks = triton.cdiv(queries, tallest) * (tallest // config["BLOCK_M"])
    dsinks = None if problem.sinks is None else empty(blocks, batch, heads, like=lse)
    launch(
        attention_delta,
        (blocks * batch * heads,),
        config,
        *(dout, out, lse, dlse, problem.sinks, level, delta, dsinks, problem.query_starts),
        *(*strides(dout, out), *problem.row_strides(lse), *level_strides, queries, heads, batch * heads),
        PACKED=problem.packed,
        VALUES=v_width,
        PADDED_VALUES=padded(v_width),
    )
    options = (*problem.reach.as_arguments(), *problem.factors(), problem.scale)
    constants = {"GROUP": group, **problem.constants(width, v_width)}

    config = choose("attention_backward_keys", key_configurations(*sizes, problem.plain, problem.masked))
    tiles = triton.cdiv(keys, config["BLOCK_N"])
    concurrent = concurrent_heads(queries * group * (width + v_width) * element, batch * kv_heads)
    for index in range(config["PASSES"]):
        launch(
            attention_backward_keys,
            (tiles * batch * kv_heads,),
            config,
            *matrices(q, parts, config["BLOCK_M"], config),
            *matrices(k, parts, config["BLOCK_N"], config),
            *matrices(v, (padded(v_width),), config["BLOCK_N"], config),
            *matrices(dout, (padded(v_width),), config["BLOCK_M"], config),
            *(dk, dv, level, delta, problem.slopes, *starts),
            *strides(q, k, v, dout, dk, dv),
            *level_strides,
            *(queries, keys, kv_heads, batch * kv_heads, tiles, concurrent, *options),
            PASS=index,
            **constants,
        )
    config = choose("attention_backward_queries", query_configurations(*sizes))
    tiles = triton.cdiv(queries, config["BLOCK_M"])
    concurrent = group * concurrent_heads(keys * (width + v_width) * element, batch * kv_heads)
    launch(
        attention_backward_queries,
        (tiles * batch * heads,),
        config,
        *matrices(q, parts, config["BLOCK_M"], config),
        *matrices(k, parts, config["BLOCK_N"], config),
        *matrices(v, (padded(v_width),), config["BLOCK_N"], config),
        *matrices(dout, (padded(v_width),), config["BLOCK_M"], config),
        *(dq, level, delta, problem.slopes, *starts),
        *strides(q, k, v, dout, dq),
        *level_strides,
        *(queries, keys, heads, batch * heads, tiles, concurrent, *options),
        **constants,
    )
    return None if dsinks is None else dsinks.sum(dim=(0, 1))
