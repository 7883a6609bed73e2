"""The two large kernels of attention's backward, and their configurations; attention_backward.py says what they do."""

from __future__ import annotations

import triton
import triton.language as tl

from llmbench.kernels.attention.tiles import (
    LOG2E,
    allowed,
    capped,
    one_tile,
    phases,
    tile_of,
    tile_of_head,
    tiles_from,
    tiles_of_heads,
)
from llmbench.kernels.launching import Config
from llmbench.kernels.products import dot

__all__ = [
    "TALLEST",
    "attention_backward_keys",
    "attention_backward_queries",
    "configurations_keys",
    "configurations_queries",
]

LOG2_E = tl.constexpr(LOG2E)
TALLEST = tl.constexpr(128)  # rows of the tallest tile of queries; `level` and `delta` are padded to a multiple of it


@triton.jit
def _probabilities(
    s, level, at_keys, positions, before, after, scale, cap, slope,
    MASKED: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    EXACT: tl.constexpr,
):  # fmt: skip
    """p, and the derivative of the cap, from raw scores; the log-sum-exp, the keys' and the queries' positions are
    broadcast to them."""
    slack = 1.0
    if CAPPED:
        s = capped(s * scale, EXACT)
        slack = 1.0 - s * s
        s = s * cap
    else:
        s = s * scale
    if SLOPED:
        s += (at_keys - positions).to(tl.float32) * slope
    p = tl.exp2(s - level)
    if MASKED:
        p = tl.where(allowed(at_keys, positions, before, after, BEFORE, AFTER), p, 0.0)
    return p, slack


@triton.jit
def _over_queries(
    dk, dk_rest, dv, k, k_rest, v, q_tiles, q_rest_tiles, do_tiles, level, delta, slopes,
    q_head, q_row, do_head, do_row, level_head, start, stop, queries, at_keys, before, after, scale, cap,
    GROUP: tl.constexpr, MASKED: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr,
    SLOPED: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUES: tl.constexpr,
    PADDED_VALUES: tl.constexpr, BLOCK_M: tl.constexpr, TMA: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
):  # fmt: skip
    """Add what the queries from `start` to `stop` give to a tile of keys. Scores stand transposed: [keys, queries].
    `at_keys`: where the keys are, counted from the first query's position."""
    FIRST: tl.constexpr = WIDTH if REST == 0 else MAIN
    steps = tl.maximum(stop - start + BLOCK_M - 1, 0) // BLOCK_M
    for step in range(steps * GROUP):  # heads in one loop: loads run ahead from one to the next
        member = 0
        m = start + step * BLOCK_M
        if GROUP > 1:
            member = step // tl.maximum(steps, 1)
            m -= member * steps * BLOCK_M
        rows = m + tl.arange(0, BLOCK_M)
        q = tile_of_head(q_tiles, member, m, queries, q_head, q_row, FIRST, BLOCK_M, MAIN, TMA)
        s = dot(k, q.T)
        q_rest = q
        if REST > 0:
            q_rest = tile_of_head(q_rest_tiles, member, m, queries, q_head, q_row, WIDTH - MAIN, BLOCK_M, REST, TMA)
            s = dot(k_rest, q_rest.T, s)
        do = tile_of_head(do_tiles, member, m, queries, do_head, do_row, VALUES, BLOCK_M, PADDED_VALUES, TMA)
        if DK:
            dp = dot(v, do.T)  # beside the scores, so that fewer numbers wait in registers
        high = tl.load(level + member * level_head + rows)
        slope = 0.0
        if SLOPED:
            slope = tl.load(slopes + member).to(tl.float32) * LOG2_E
        p, slack = _probabilities(
            s, high[None, :], at_keys[:, None], rows[None, :], before, after, scale, cap, slope,
            MASKED, BEFORE, AFTER, CAPPED, SLOPED, q.dtype == tl.float32,
        )  # fmt: skip
        if DV:
            dv = dot(p.to(do.dtype), do, dv)
        if DK:
            less = tl.load(delta + member * level_head + rows)
            ds = (p * (dp - less[None, :]) * slack).to(q.dtype)
            dk = dot(ds, q, dk)
            if REST > 0:
                dk_rest = dot(ds, q_rest, dk_rest)
    return dk, dk_rest, dv


@triton.jit
def attention_backward_keys(
    q, k, v, dout, dk, dv, level, delta, slopes, query_starts, key_starts,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, do_batch, do_head, do_row,
    dk_batch, dk_head, dk_row, dv_batch, dv_head, dv_row, level_batch, level_head,
    queries, keys, kv_heads, all_heads, tiles, together, before, after, scale, cap, natural_scale,
    GROUP: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    PACKED: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUES: tl.constexpr,
    PADDED_VALUES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr,
    PASSES: tl.constexpr, PASS: tl.constexpr,
):  # fmt: skip
    """A program: dk and dv of BLOCK_N keys of one key head, from all queries of the heads that share it. In two
    PASSES, where registers do not hold both: dk, then dv."""
    tile, kv_head = one_tile(tiles, all_heads, together, False)  # under a causal mask the first keys have most to do
    batch = tl.cast(kv_head // kv_heads, tl.int64)
    kv_head = tl.cast(kv_head % kv_heads, tl.int64)
    k += kv_head * k_head
    v += kv_head * v_head
    if PACKED:
        start = tl.load(query_starts + batch)
        queries = tl.load(query_starts + batch + 1) - start
        q += tl.cast(start, tl.int64) * q_row
        dout += tl.cast(start, tl.int64) * do_row
        level += (start // TALLEST + batch) * TALLEST
        delta += (start // TALLEST + batch) * TALLEST
        start = tl.load(key_starts + batch)
        keys = tl.load(key_starts + batch + 1) - start
        k += tl.cast(start, tl.int64) * k_row
        v += tl.cast(start, tl.int64) * v_row
    else:
        q += batch * q_batch
        k += batch * k_batch
        v += batch * v_batch
        dout += batch * do_batch
        level += batch * level_batch
        delta += batch * level_batch
    first = tile * BLOCK_N
    if first < keys:
        FIRST: tl.constexpr = WIDTH if REST == 0 else MAIN
        DK: tl.constexpr = PASSES == 1 or PASS == 0
        DV: tl.constexpr = PASSES == 1 or PASS == 1
        k_tiles = tiles_from(k, keys, k_row, FIRST, BLOCK_N, MAIN, TMA)
        v_tiles = tiles_from(v, keys, v_row, VALUES, BLOCK_N, PADDED_VALUES, TMA)
        k_tile = tile_of(k_tiles, first, keys, k_row, FIRST, BLOCK_N, MAIN, TMA, False)
        v_tile = tile_of(v_tiles, first, keys, v_row, VALUES, BLOCK_N, PADDED_VALUES, TMA, False)
        k_rest = k_tile
        if REST > 0:
            k_rest_tiles = tiles_from(k + MAIN, keys, k_row, WIDTH - MAIN, BLOCK_N, REST, TMA)
            k_rest = tile_of(k_rest_tiles, first, keys, k_row, WIDTH - MAIN, BLOCK_N, REST, TMA, False)

        positions = first + tl.arange(0, BLOCK_N)
        shift = keys - queries
        last = tl.minimum(first + BLOCK_N, keys) - 1
        # The queries of a key, by the bounds turned round. Rows past the last query are 0 at level ∞, and need no mask.
        lo, a, b, hi = phases(first, last, -shift, after, before, queries, BLOCK_M, AFTER, BEFORE)
        if not BEFORE:
            b = hi
        dk_sum = tl.zeros([BLOCK_N, MAIN], tl.float32)
        dk_rest_sum = tl.zeros([BLOCK_N, REST if REST > 0 else 1], tl.float32)
        dv_sum = tl.zeros([BLOCK_N, PADDED_VALUES], tl.float32)
        q += kv_head * GROUP * q_head
        dout += kv_head * GROUP * do_head
        level += kv_head * GROUP * level_head
        delta += kv_head * GROUP * level_head
        if SLOPED:
            slopes += kv_head * GROUP
        q_tiles = tiles_of_heads(q, GROUP, queries, q_head, q_row, FIRST, BLOCK_M, MAIN, TMA)
        do_tiles = tiles_of_heads(dout, GROUP, queries, do_head, do_row, VALUES, BLOCK_M, PADDED_VALUES, TMA)
        q_rest_tiles = q_tiles
        if REST > 0:
            q_rest_tiles = tiles_of_heads(q + MAIN, GROUP, queries, q_head, q_row, WIDTH - MAIN, BLOCK_M, REST, TMA)
        for phase in tl.static_range(0 if AFTER else 1, 3 if BEFORE else 2):
            begin = lo if phase == 0 else (a if phase == 1 else b)
            end = a if phase == 0 else (b if phase == 1 else hi)
            dk_sum, dk_rest_sum, dv_sum = _over_queries(
                dk_sum, dk_rest_sum, dv_sum, k_tile, k_rest, v_tile, q_tiles, q_rest_tiles, do_tiles,
                level, delta, slopes, q_head, q_row, do_head, do_row, level_head, begin, end, queries,
                positions - shift, before, after, scale, cap, GROUP,
                phase != 1, BEFORE, AFTER, CAPPED, SLOPED, WIDTH, MAIN, REST, VALUES, PADDED_VALUES, BLOCK_M, TMA,
                DK, DV,
            )  # fmt: skip

        # Addresses are made here, after the loops, which need every register.
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
    dq, dq_rest, q, q_rest, do, high, less, k_tiles, k_rest_tiles, v_tiles, k_row, v_row, start, stop, keys,
    positions, before, after, scale, cap, slope,
    MASKED: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUES: tl.constexpr, PADDED_VALUES: tl.constexpr,
    BLOCK_N: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """Add what the keys from `start` to `stop` give to a tile of queries."""
    FIRST: tl.constexpr = WIDTH if REST == 0 else MAIN
    for n in range(start, stop, BLOCK_N):
        columns = n + tl.arange(0, BLOCK_N)
        k = tile_of(k_tiles, n, keys, k_row, FIRST, BLOCK_N, MAIN, TMA, not MASKED)
        s = dot(q, k.T)
        k_rest = k
        if REST > 0:
            k_rest = tile_of(k_rest_tiles, n, keys, k_row, WIDTH - MAIN, BLOCK_N, REST, TMA, not MASKED)
            s = dot(q_rest, k_rest.T, s)
        v = tile_of(v_tiles, n, keys, v_row, VALUES, BLOCK_N, PADDED_VALUES, TMA, not MASKED)
        dp = dot(do, v.T)
        p, slack = _probabilities(
            s, high[:, None], columns[None, :], positions[:, None], before, after, scale, cap, slope,
            MASKED, BEFORE, AFTER, CAPPED, SLOPED, q.dtype == tl.float32,
        )  # fmt: skip
        if MASKED:
            p = tl.where(columns[None, :] < keys, p, 0.0)  # else an infinity might meet the zeros past the last key
        ds = (p * (dp - less[:, None]) * slack).to(q.dtype)
        dq = dot(ds, k, dq)
        if REST > 0:
            dq_rest = dot(ds, k_rest, dq_rest)
    return dq, dq_rest


@triton.jit
def attention_backward_queries(
    q, k, v, dout, dq, level, delta, slopes, query_starts, key_starts,
    q_batch, q_head, q_row, k_batch, k_head, k_row, v_batch, v_head, v_row, do_batch, do_head, do_row,
    dq_batch, dq_head, dq_row, level_batch, level_head,
    queries, keys, heads, all_heads, tiles, together, before, after, scale, cap, natural_scale,
    GROUP: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr, CAPPED: tl.constexpr, SLOPED: tl.constexpr,
    PACKED: tl.constexpr, WIDTH: tl.constexpr, MAIN: tl.constexpr, REST: tl.constexpr, VALUES: tl.constexpr,
    PADDED_VALUES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """A program: dq of BLOCK_M queries of one head."""
    tile, head = one_tile(tiles, all_heads, together, AFTER and not BEFORE)
    batch = tl.cast(head // heads, tl.int64)
    head = tl.cast(head % heads, tl.int64)
    kv_head = head // GROUP
    q += head * q_head
    k += kv_head * k_head
    v += kv_head * v_head
    dout += head * do_head
    dq += head * dq_head
    level += head * level_head
    delta += head * level_head
    if PACKED:
        start = tl.load(query_starts + batch)
        queries = tl.load(query_starts + batch + 1) - start
        q += tl.cast(start, tl.int64) * q_row
        dout += tl.cast(start, tl.int64) * do_row
        dq += tl.cast(start, tl.int64) * dq_row
        level += (start // TALLEST + batch) * TALLEST
        delta += (start // TALLEST + batch) * TALLEST
        start = tl.load(key_starts + batch)
        keys = tl.load(key_starts + batch + 1) - start
        k += tl.cast(start, tl.int64) * k_row
        v += tl.cast(start, tl.int64) * v_row
    else:
        q += batch * q_batch
        k += batch * k_batch
        v += batch * v_batch
        dout += batch * do_batch
        dq += batch * dq_batch
        level += batch * level_batch
        delta += batch * level_batch
    first = tile * BLOCK_M
    if first < queries:
        FIRST: tl.constexpr = WIDTH if REST == 0 else MAIN
        q_tiles = tiles_from(q, queries, q_row, FIRST, BLOCK_M, MAIN, TMA)
        do_tiles = tiles_from(dout, queries, do_row, VALUES, BLOCK_M, PADDED_VALUES, TMA)
        k_tiles = tiles_from(k, keys, k_row, FIRST, BLOCK_N, MAIN, TMA)
        v_tiles = tiles_from(v, keys, v_row, VALUES, BLOCK_N, PADDED_VALUES, TMA)
        q_tile = tile_of(q_tiles, first, queries, q_row, FIRST, BLOCK_M, MAIN, TMA, False)
        do_tile = tile_of(do_tiles, first, queries, do_row, VALUES, BLOCK_M, PADDED_VALUES, TMA, False)
        q_rest = q_tile
        k_rest_tiles = k_tiles
        if REST > 0:
            q_rest_tiles = tiles_from(q + MAIN, queries, q_row, WIDTH - MAIN, BLOCK_M, REST, TMA)
            q_rest = tile_of(q_rest_tiles, first, queries, q_row, WIDTH - MAIN, BLOCK_M, REST, TMA, False)
            k_rest_tiles = tiles_from(k + MAIN, keys, k_row, WIDTH - MAIN, BLOCK_N, REST, TMA)

        rows = first + tl.arange(0, BLOCK_M)
        inside = rows < queries
        high = tl.load(level + rows)
        less = tl.load(delta + rows)
        slope = 0.0
        if SLOPED:
            slope = tl.load(slopes + head).to(tl.float32) * LOG2_E
        shift = keys - queries
        last = tl.minimum(first + BLOCK_M, queries) - 1
        lo, a, b, hi = phases(first, last, shift, before, after, keys, BLOCK_N, BEFORE, AFTER)
        dq_sum = tl.zeros([BLOCK_M, MAIN], tl.float32)
        dq_rest_sum = tl.zeros([BLOCK_M, REST if REST > 0 else 1], tl.float32)
        for phase in tl.static_range(0 if BEFORE else 1, 3):
            begin = lo if phase == 0 else (a if phase == 1 else b)
            end = a if phase == 0 else (b if phase == 1 else hi)
            dq_sum, dq_rest_sum = _over_keys(
                dq_sum, dq_rest_sum, q_tile, q_rest, do_tile, high, less, k_tiles, k_rest_tiles, v_tiles,
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


def _config(m: int, n: int, warps: int, stages: int, note: str, tma: int = 1, **more: int) -> Config:
    return Config(BLOCK_M=m, BLOCK_N=n, TMA=tma, num_warps=warps, num_stages=stages, note=note, **more)


def configurations_keys(width: int, values: int, element: int, arch: int, plain: bool) -> list[Config]:
    """For dk and dv; `width` and `values` as padded, `element` bytes. Two accumulators of the tile's keys stay in
    registers for the whole walk, two products of scores beside them: at 128 keys and 8 warps, 64 rows a warpgroup.
    What is not `plain` holds a bound, a slope or the derivative of a cap beside each score: half as many scores."""
    if arch < 90 or element == 4:
        tma = int(arch >= 90)
        if max(width, values) <= 128:
            return [_config(32, 64, 8, 2, "what shared memory holds", tma, PASSES=1)]
        if tma:
            stages = 1 if arch >= 100 else 2  # there, scores pass through shared memory too
            return [_config(16, 64, 8, stages, "what shared memory holds of fp32", PASSES=2)]
        return [_config(32 if element == 2 else 16, 32, 8, 1, "what shared memory holds", tma, PASSES=2)]
    if max(width, values) <= 64:
        return [
            _config(64, 128, 8, 2, "64 rows a warpgroup; half of what 128 wide heads need", PASSES=1),
            _config(64, 64, 4, 2, "two blocks a multiprocessor, one's softmax beside the other's products", PASSES=1),
        ]
    if max(width, values) <= 128 and plain:
        return [_config(64, 128, 8, 2, "64 + 64 accumulators, 32 + 32 scores a thread: all registers", PASSES=1)]
    if max(width, values) <= 128:
        return [
            _config(32, 128, 8, 2, "64 + 64 accumulators, 16 + 16 scores a thread and what shapes them", PASSES=1),
            _config(32, 64, 4, 2, "the same a thread; two blocks a multiprocessor", PASSES=1),
        ]
    if width <= 192 and values <= 128:
        note = "one accumulator at a time and full tiles: eight products, not seven"
        found = [_config(64, 128, 8, 2, note, PASSES=2)]
        if plain:
            note = "96 + 64 accumulators, 16 + 16 scores a thread; two blocks"
            found.insert(0, _config(32, 64, 4, 2, note, PASSES=1))
        return found
    return [_config(16, 128, 8, 2, "one accumulator of 128 a thread at a time: eight products, not seven", PASSES=2)]


def configurations_queries(width: int, values: int, element: int, arch: int) -> list[Config]:
    """For dq: one accumulator, and two products of scores; 64 query rows a warpgroup."""
    wide = max(width, values)
    if arch < 90 or element == 4:
        tma = int(arch >= 90)
        if wide <= 128:
            return [_config(64, 32, 8, 2, "what shared memory holds", tma)]
        stages = 1 if arch >= 100 else 2
        return [_config(64 if tma or element == 2 else 32, 16, 8, stages, "what shared memory holds", tma)]
    if wide <= 64:
        return [
            _config(128, 64, 8, 2, "two blocks a multiprocessor under a causal mask"),
            _config(64, 64, 4, 2, "four blocks a multiprocessor"),
        ]
    if width <= 192 and values <= 128:
        return [_config(128, 64, 8, 2, "64 or 96 accumulators, 32 + 32 scores a thread")]
    return [_config(128, 16, 8, 2, "128 accumulators leave room for 8 + 8 scores a thread; 160 KiB shared")]
