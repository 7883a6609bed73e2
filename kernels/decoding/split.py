"""The kernel of decode attention, and its configurations. The maths stands in `decode_attention`."""

from __future__ import annotations

import triton
import triton.language as tl

from llmbench.kernels.decoding.merge import (
    LOG2E,
    key_positions_of,
    limits_of,
    pages_of,
    row_at,
    share_of,
    softmax_step,
    tanh,
)
from llmbench.kernels.launching import Config
from llmbench.kernels.products import dot, exactly

__all__ = ["configurations", "decode_split", "resident_programs"]


@triton.jit
def decode_split(
    q, k, v, k_scales, v_scales, out, sums, sinks, slopes, lengths, table, query_positions, key_positions,
    q_batch, q_head, q_token, k_outer, k_head, k_slot, v_outer, v_head, v_slot, s_outer, s_head, s_slot, table_row,
    tokens, capacity, splits, kv_heads, scale, cap, window, chunk,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, PAGE: tl.constexpr, RING: tl.constexpr,
    CAUSAL: tl.constexpr, WHOLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """A program: one split of the slots of one KV head of one sequence, for BLOCK_M rows r = s · G + g. Programs of the
    same keys are neighbours. WHOLE: one split, and the result itself is written."""
    rows_at, split, pair = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    batch, kv_head = (pair // kv_heads).to(tl.int64), (pair % kv_heads).to(tl.int64)
    row = rows_at * BLOCK_M + tl.arange(0, BLOCK_M)
    token, head = row // GROUP, kv_head * GROUP + row % GROUP
    wide, v_wide = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_V)
    valid = token < tokens
    length = capacity
    if lengths is not None:
        length = tl.load(lengths + batch).to(tl.int32)
    position, low, high = limits_of(query_positions, batch, token, length, tokens, window, chunk, CAUSAL)
    SLOTS: tl.constexpr = key_positions is None and not RING
    start, end = share_of(low, high, length, capacity, split, splits, SLOTS, BLOCK_N)

    q_at = q + batch * q_batch + head[:, None] * q_head + token[:, None] * q_token + wide[None, :]
    queries = tl.load(q_at, mask=valid[:, None] & (wide[None, :] < WIDTH), other=0.0)
    if slopes is not None:
        slope = tl.load(slopes + head, mask=valid, other=0.0).to(tl.float32) * LOG2E
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    k += kv_head * k_head
    v += kv_head * v_head
    page = pages_of(table, batch, start + tl.arange(0, BLOCK_N), end, table_row, PAGE)
    for first in range(start, end, BLOCK_N):
        slot = first + tl.arange(0, BLOCK_N)
        key = key_positions_of(key_positions, batch, slot, slot < end, length, capacity, RING)
        held = key >= 0  # an empty slot may hold NaN, which a weight of 0 does not undo
        k_at = k + row_at(page, slot, k_outer, k_slot, PAGE)[:, None] + wide[None, :]
        keys = tl.load(k_at, mask=held[:, None] & (wide[None, :] < WIDTH), other=0.0)
        v_at = v + row_at(page, slot, v_outer, v_slot, PAGE)[:, None] + v_wide[None, :]
        values = tl.load(v_at, mask=held[:, None] & (v_wide[None, :] < V_WIDTH), other=0.0)
        scores = dot(queries, tl.trans(exactly(keys, queries)))
        if k_scales is not None:
            at_scale = kv_head * s_head + row_at(page, slot, s_outer, s_slot, PAGE)
            scores *= tl.load(k_scales + at_scale, mask=held, other=0.0)[None, :]
        scores = scores * (scale * LOG2E) if cap is None else tanh(scores * (scale / cap)) * (cap * LOG2E)
        if slopes is not None:
            scores += slope[:, None] * (key[None, :] - position[:, None]).to(tl.float32)
        weights, top, total, shrink = softmax_step(scores, key, low, high, top, total)
        if v_scales is not None:
            weights *= tl.load(v_scales + at_scale, mask=held, other=0.0)[None, :]
        acc = dot(weights.to(queries.dtype), exactly(values, queries), acc * shrink[:, None])
        if PAGE:
            page = pages_of(table, batch, slot + BLOCK_N, end, table_row, PAGE)

    at = ((batch * kv_heads * GROUP + head) * tokens + token) * splits + split
    log_sum = tl.where(total > 0.0, top + tl.log2(tl.where(total > 0.0, total, 1.0)), -float("inf"))
    if WHOLE and sinks is not None:
        sink = tl.load(sinks + head, mask=valid, other=0.0).to(tl.float32) * LOG2E
        higher = tl.maximum(top, sink)
        shrink = tl.exp2(top - higher)
        total = total * shrink + tl.exp2(sink - higher)
        acc = acc * shrink[:, None]
    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    written = valid[:, None] & (v_wide[None, :] < V_WIDTH)
    if not WHOLE:
        tl.store(sums + at, log_sum, mask=valid)
        written = written & (log_sum[:, None] > -float("inf"))
    tl.store(out + at[:, None] * V_WIDTH + v_wide[None, :], acc.to(out.dtype.element_ty), mask=written)


def configurations(rows: int, width: int, itemsize: int, stored: int, arch: int) -> list[Config]:
    """By rows of a tile, the wider of H and V as a power of two, and bytes of an element, as multiplied and as stored.

    What counts is bytes in flight: 4.8 TB/s for ~1 µs are 36 KB a multiprocessor. A tile of keys and one of values are
    16 KB each; two such pairs a program and three programs a multiprocessor leave most of 200 KB on the way while one
    computes, and hide each other's starts and reductions. The compiler holds one pair less than there are stages.
    """
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    most = 128 if arch >= 90 and block_m == 16 else 64  # scores of 64 x 128 do not fit beside sums and conversions
    if block_m == 64 and itemsize == 4:
        most = 32  # quantised rows are wider once they are read
    block_n = max(16, min(most, triton.next_power_of_2(16384 // (width * stored))))
    sizes = {"BLOCK_M": block_m, "BLOCK_N": block_n}
    stages = 1 + min(4, 65536 // (2 * block_n * width * stored))  # 64 KB held
    if block_m == 64:
        half = {"BLOCK_M": 64, "BLOCK_N": max(16, block_n // 2)}
        small = Config(**half, num_warps=4, num_stages=stages, note="2 or 3 programs, one multiplies as one waits")
        large = Config(**sizes, num_warps=8, num_stages=3, note="2 warpgroups share the keys and 64 x 256 of sums")
        return [small, large] if width <= 128 else [large, small]
    return [
        Config(**sizes, num_warps=4, num_stages=stages, note="64 KB held, 3 programs by shared memory"),
        Config(**sizes, num_warps=4, num_stages=stages - 1, note="a pair less, more programs"),
        Config(**sizes, num_warps=4, num_stages=stages + 1, note="a pair more, 2 programs"),
    ]


def resident_programs(config: Config, width: int, stored: int, arch: int) -> int:
    """How many programs a multiprocessor runs at a time, by shared memory: tiles held, queries and weights 8 KB."""
    pair = 2 * config["BLOCK_N"] * width * stored
    room = {80: 163, 90: 227, 100: 227}.get(arch, 99) << 10
    return max(1, min(4, room // (pair * (config.num_stages - 1) + (8 << 10))))
