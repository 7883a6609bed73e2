"""Attention of a few new queries on a KV cache. Each key is read once, so memory bandwidth is the limit.

    o = softmax(cap · tanh(q kᵀ · scale / cap) + slope · (key position - query position)) v,  with e^sink in the sum

A KV head has G = N / K query heads. Their S queries are the rows of one tile, so each key is loaded once for all of
these rows. Tiles of 16 or 32 rows use mma.sync. They need 2 · rows FLOPs per byte, far less than mma.sync can do. Tiles
of 64 rows use wgmma. The slots of a sequence are split over programs. The results of the splits are merged with their
log-sum-exp as weights: Flash-Decoding (Dao et al., PyTorch blog, 2023). Online softmax: Milakov and Gimelshein, arXiv
1805.02867. Pages: Kwon et al., arXiv 2309.06180. Sinks: gpt-oss. ALiBi: arXiv 2108.12409. The docstring of merge.py
defines slots, positions, windows, chunks and splits; caches.py has the arguments that describe a cache.

Arithmetic is in fp32; fp32 rows are multiplied in tf32. An int8 or e4m3 element of a quantised row is exact in fp16 and
bf16, so matrix products take the elements without their scales. The scale of a key multiplies its score, and the scale
of a value multiplies its softmax weight.

B batch, N query heads, K KV heads, S queries (1 to 8), T slots, H key width, V value width, P pages, M pages per
sequence. Shapes: q [B, N, S, H]; k, v [B, K, T, H or V], or paged [P, page, K, H or V] with a table [B, M]; out [B, N,
S, V]. Forward only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from llmbench.kernels.decoding.caches import (
    CacheLayout,
    RowStrides,
    case_cache,
    check_row_type,
    contiguous,
    count_pairs,
    count_visible,
    gather_rows,
    masked_softmax,
    random_cache,
    readable_slots,
    slot_positions,
    visible,
)
from llmbench.kernels.decoding.merge import (
    check_splits,
    combine,
    load_key_positions,
    load_pages,
    row_offsets,
    softmax_step,
    split_count,
    split_range,
    visible_range,
)
from llmbench.kernels.kernel import Cost, Draw, Inputs, Kernel, Random
from llmbench.kernels.launching import Config, architecture, choose, empty, launch, multiprocessors
from llmbench.kernels.numeric import LOG2E, tanh, widened
from llmbench.kernels.products import dot

__all__ = ["KERNEL", "decode_attention", "reference"]


# == Kernels ==


@triton.jit
def decode_split(
    q, k, v, k_scales, v_scales, out, sums, sinks, slopes, lengths, table, query_positions, key_positions,
    q_batch, q_head, q_token, k_outer, k_head, k_slot, v_outer, v_head, v_slot, s_outer, s_head, s_slot, table_row,
    tiles, tokens, capacity, splits, kv_heads, scale, cap, window, chunk,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, V_WIDTH: tl.constexpr, PAGE: tl.constexpr, RING: tl.constexpr,
    CAUSAL: tl.constexpr, WHOLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One program processes one split of the slots of one KV head and sequence, for BLOCK_M rows r = s · G + g.

    Row r is query s of head g in the group. Programs that read the same keys have adjacent numbers. WHOLE: there is
    only one split, so the program writes the final result.
    """
    rows_at, pair, split = tl.program_id(0) % tiles, tl.program_id(0) // tiles, tl.program_id(1)
    batch, kv_head = (pair // kv_heads).to(tl.int64), (pair % kv_heads).to(tl.int64)
    row = rows_at * BLOCK_M + tl.arange(0, BLOCK_M)
    token, head = row // GROUP, kv_head * GROUP + row % GROUP
    wide, v_wide = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_V)
    valid = token < tokens
    length = capacity
    if lengths is not None:
        length = tl.load(lengths + batch).to(tl.int32)
    position, low, high = visible_range(query_positions, batch, token, length, tokens, window, chunk, CAUSAL)
    SLOTS: tl.constexpr = key_positions is None and not RING
    start, end = split_range(low, high, length, capacity, split, splits, SLOTS, BLOCK_N)

    q_at = q + batch * q_batch + head[:, None] * q_head + token.to(tl.int64)[:, None] * q_token + wide[None, :]
    queries = tl.load(q_at, mask=valid[:, None] & (wide[None, :] < WIDTH), other=0.0)
    if slopes is not None:
        slope = tl.load(slopes + head, mask=valid, other=0.0).to(tl.float32) * LOG2E
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)
    k += kv_head * k_head
    v += kv_head * v_head
    page = load_pages(table, batch, start + tl.arange(0, BLOCK_N), end, table_row, PAGE)
    for first in range(start, end, BLOCK_N):
        slot = first + tl.arange(0, BLOCK_N)
        key = load_key_positions(key_positions, batch, slot, slot < end, length, capacity, RING)
        stored = key >= 0  # an empty slot may contain NaN, and 0 · NaN is NaN
        k_at = k + row_offsets(page, slot, k_outer, k_slot, PAGE)[:, None] + wide[None, :]
        keys = tl.load(k_at, mask=stored[:, None] & (wide[None, :] < WIDTH), other=0.0)
        v_at = v + row_offsets(page, slot, v_outer, v_slot, PAGE)[:, None] + v_wide[None, :]
        values = tl.load(v_at, mask=stored[:, None] & (v_wide[None, :] < V_WIDTH), other=0.0)
        scores = dot(queries, tl.trans(widened(keys, queries)))
        if k_scales is not None:
            at_scale = kv_head * s_head + row_offsets(page, slot, s_outer, s_slot, PAGE)
            scores *= tl.load(k_scales + at_scale, mask=stored, other=0.0)[None, :]
        scores = scores * (scale * LOG2E) if cap is None else tanh(scores * (scale / cap)) * (cap * LOG2E)
        if slopes is not None:
            scores += slope[:, None] * (key[None, :] - position[:, None]).to(tl.float32)
        weights, top, total, shrink = softmax_step(scores, key, low, high, top, total)
        if v_scales is not None:
            weights *= tl.load(v_scales + at_scale, mask=stored, other=0.0)[None, :]
        acc = dot(weights.to(queries.dtype), widened(values, queries), acc * shrink[:, None])
        if PAGE:
            page = load_pages(table, batch, slot + BLOCK_N, end, table_row, PAGE)

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


# == Configurations and launcher ==


def configurations(rows: int, width: int, itemsize: int, stored: int, arch: int) -> list[Config]:
    """Return the candidate configurations. `rows`: rows of a tile. `width`: the greater of H and V, as a power of two.
    `itemsize`: bytes per element in the matrix products. `stored`: bytes per element in the cache.

    Enough bytes must be in flight: 4.8 TB/s times a latency of about 1 µs is 36 KB per multiprocessor. A tile of keys
    and a tile of values have 16 KB each. With two such pairs per program and three programs per multiprocessor, most of
    200 KB are in flight while one program computes. The programs also overlap each other's starts and reductions. With
    n stages, the compiler keeps n - 1 pairs in flight.
    """
    block_m = 16 if rows <= 16 else 32 if rows <= 32 else 64
    # Scores of 64 x 128 do not fit in registers together with the sums and the converted values.
    max_n = 128 if arch >= 90 and block_m == 16 else 64
    if block_m == 64 and itemsize == 4:
        max_n = 32  # smaller tiles, because quantised rows need more registers after conversion
    block_n = max(16, min(max_n, triton.next_power_of_2(16384 // (width * stored))))
    sizes = {"BLOCK_M": block_m, "BLOCK_N": block_n}
    stages = 1 + min(4, 65536 // (2 * block_n * width * stored))  # keeps about 64 KB in flight
    if block_m == 64:
        half = {"BLOCK_M": 64, "BLOCK_N": max(16, block_n // 2)}
        small = Config(
            **half,
            num_warps=4,
            num_stages=stages,
            note="2 or 3 programs per multiprocessor: one multiplies while another waits",
        )
        large = Config(**sizes, num_warps=8, num_stages=3, note="2 warpgroups share the keys and the sums of 64 x 256")
        return [small, large] if width <= 128 else [large, small]
    return [
        Config(**sizes, num_warps=4, num_stages=stages, note="64 KB in flight; shared memory allows 3 programs"),
        Config(**sizes, num_warps=4, num_stages=stages - 1, note="one pair of tiles fewer in flight, more programs"),
        Config(**sizes, num_warps=4, num_stages=stages + 1, note="one pair of tiles more in flight, 2 programs"),
    ]


def resident_programs(config: Config, width: int, stored: int, arch: int) -> int:
    """Return the number of programs that run on a multiprocessor at the same time. Shared memory is the limit: a
    program needs memory for the tiles in flight and 8 KB more."""
    pair = 2 * config["BLOCK_N"] * width * stored
    room = {80: 163, 90: 227, 100: 227}.get(arch, 99) << 10
    return max(1, min(4, room // (pair * (config.num_stages - 1) + (8 << 10))))


# == Torch op ==


@torch.library.custom_op("llmbench::decode_attention", mutates_args=())
def _decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_scales: Tensor | None,
    v_scales: Tensor | None,
    sinks: Tensor | None,
    slopes: Tensor | None,
    lengths: Tensor | None,
    table: Tensor | None,
    key_positions: Tensor | None,
    query_positions: Tensor | None,
    ring: bool,
    causal: bool,
    window: int | None,
    chunk: int | None,
    soft_cap: float | None,
    scale: float,
    splits: int,
) -> Tensor:
    """Compute out [B, N, S, V]. `decode_attention` has checked the arguments and made them contiguous."""
    batch, heads, tokens, width = q.shape
    kv_heads, capacity, page = _sizes(k, table)
    v_width, group = v.shape[-1], heads // kv_heads
    layout = CacheLayout(lengths, table, key_positions, query_positions, ring, causal, window, chunk)
    out = empty(batch, heads, tokens, v_width, like=q)
    if not out.numel():
        return out
    arch, rows = architecture(q.device), tokens * group
    wide, v_wide = (max(16, triton.next_power_of_2(x)) for x in (width, v_width))
    widest, stored = max(wide, v_wide), k.element_size()
    config = choose("decode_split", configurations(rows, widest, q.element_size(), stored, arch))
    tiles = triton.cdiv(rows, config["BLOCK_M"])
    if not splits:
        resident = resident_programs(config, widest, stored, arch) * multiprocessors(q.device)
        splits = split_count(
            batch * kv_heads * tiles, readable_slots(layout, tokens, capacity), config["BLOCK_N"], resident
        )
    parts, sums = out, None
    if splits > 1:
        parts = empty(batch, heads, tokens, splits, v_width, like=q, dtype=torch.float32)
        sums = empty(batch, heads, tokens, splits, like=q, dtype=torch.float32)
    k_strides, v_strides = RowStrides.from_rows(k, bool(page)), RowStrides.from_rows(v, bool(page))
    scale_strides = RowStrides.from_rows(k_scales, bool(page)) if k_scales is not None else RowStrides(0, 0, 0)
    constants = {"GROUP": group, "WIDTH": width, "V_WIDTH": v_width, "BLOCK_H": wide, "BLOCK_V": v_wide}
    constants |= {"PAGE": page, "RING": ring, "CAUSAL": causal, "WHOLE": splits == 1}
    launch(
        decode_split,
        (tiles * batch * kv_heads, splits),
        config,
        *(q, k, v, k_scales, v_scales, parts, sums, sinks if splits == 1 else None, slopes),
        *(lengths, table, query_positions, key_positions),
        *(*q.stride()[:3], *k_strides, *v_strides, *scale_strides, 0 if table is None else table.stride(0)),
        *(tiles, tokens, capacity, splits, kv_heads, scale, soft_cap, window, chunk),
        **constants,
    )
    if sums is not None:
        combine(parts, sums, sinks, out)
    return out


@_decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[-1])


@register_flop_formula(torch.ops.llmbench.decode_attention, get_raw=True)
def _flops(q: Tensor, k: Tensor, v: Tensor, *others: Any, **_: Any) -> int:
    """Return 2 · (H + V) FLOPs per head and visible pair. Fake tensors have no data, so all slots count as used."""
    layout = CacheLayout(*others[4:12])
    capacity = _sizes(k, layout.table)[1]
    return 2 * (q.shape[-1] + v.shape[-1]) * q.shape[1] * count_pairs(layout, q.shape[0], q.shape[2], capacity)


def _sizes(k: Tensor, table: Tensor | None) -> tuple[int, int, int]:
    """Return the number of KV heads, of slots per sequence, and of slots per page. The last is 0 for a cache without
    pages."""
    if table is None:
        return k.shape[1], k.shape[2], 0
    return k.shape[2], table.shape[1] * k.shape[1], k.shape[1]


# == Public op ==


def decode_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    *,
    table: Tensor | None = None,
    key_positions: Tensor | None = None,
    query_positions: Tensor | None = None,
    ring: bool = False,
    causal: bool = True,
    window: int | None = None,
    chunk: int | None = None,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    scale: float | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    splits: int = 0,
) -> Tensor:
    """Return [B, N, S, V], the attention of q [B, N, S, H] on a KV cache.

    The cache is k [B, K, T, H] and v [B, K, T, V], or paged [P, page, K, H or V] with a `table` [B, M]. `lengths` [B]
    are the numbers of tokens of the sequences, including the S queries. Without `lengths`, every slot is in use. The
    queries are the last tokens of their sequence, unless `query_positions` [B, S] are given. merge.py defines
    `key_positions` [B, T] and `ring`. `sinks` and ALiBi's `slopes` are [N]. Quantised rows have `k_scales` and
    `v_scales`, in the shape of the cache without its last dimension. A query that sees no key gets zeros. With `splits`
    = 0, the op chooses a number of splits that fills the GPU.

    Raises ValueError for shapes, dtypes or options that do not match, and CannotRunError for fp8 rows on a GPU without
    fp8.
    """
    kv_heads, capacity, _ = _sizes(k, table)
    if q.dim() != 4 or k.dim() != 4 or v.shape[:-1] != k.shape[:-1] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"the shapes of q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not match")
    if q.shape[1] % kv_heads or (table is None and q.shape[0] != k.shape[0]):
        raise ValueError(
            f"q {tuple(q.shape)} and k {tuple(k.shape)} must have the same batch size, and "
            "the number of query heads must be a multiple of the number of KV heads"
        )
    if max(q.shape[-1], v.shape[-1]) > 256:
        raise ValueError(
            f"heads have width {max(q.shape[-1], v.shape[-1])}; at most 256 is supported; use mla_decode for latents"
        )
    for rows, scales in ((k, k_scales), (v, v_scales)):
        check_row_type(rows, scales is not None, q)
        if scales is not None and scales.shape != rows.shape[:-1]:
            raise ValueError(f"scales {tuple(scales.shape)} do not match rows {tuple(rows.shape)}")
    if k.dtype != v.dtype:
        raise ValueError(f"keys are {k.dtype} but values are {v.dtype}; both must have one dtype")
    for name, values in (("sinks", sinks), ("slopes", slopes)):
        if values is not None and tuple(values.shape) != (q.shape[1],):
            raise ValueError(
                f"{name} has shape {tuple(values.shape)}, but must have one value for each of {q.shape[1]} heads"
            )
    check_splits(splits)
    layout = CacheLayout(lengths, table, key_positions, query_positions, ring, causal, window, chunk)
    layout = layout.checked(q.shape[0], q.shape[2], capacity)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if k_scales is not None and v_scales is not None and k_scales.stride() != v_scales.stride():
        k_scales, v_scales = k_scales.contiguous(), v_scales.contiguous()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    sinks, slopes = contiguous(sinks), contiguous(slopes)
    return _decode(q, k, v, k_scales, v_scales, sinks, slopes, *layout, soft_cap, scale, splits)


# == Reference ==


def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor | None = None,
    *,
    soft_cap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    scale: float | None = None,
    k_scales: Tensor | None = None,
    v_scales: Tensor | None = None,
    splits: int = 0,
    **cache: Any,
) -> Tensor:
    """Compute the attention in plain torch: gather the cache, score all slots, and take the softmax in fp32 or
    wider."""
    layout = CacheLayout(lengths, **cache)
    table = layout.table
    _, capacity, _ = _sizes(k, table)
    positions = slot_positions(layout, q.shape[0], capacity, q.device)
    keys, values = (
        gather_rows(k, k_scales, table, positions, q.dtype),
        gather_rows(v, v_scales, table, positions, q.dtype),
    )
    group = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    scores = q @ keys.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    pairs, queries = visible(layout, q.shape[2], positions)
    if slopes is not None:
        scores = scores + slopes[:, None, None] * (positions[:, None, :] - queries[:, :, None])[:, None]
    return masked_softmax(scores, pairs, sinks).to(q.dtype) @ values


# == Cases and cost ==


class Case(NamedTuple):
    """Lengths of the sequences, heads, widths and options. An option that is 0 or "" is not used. `layout` is "slots",
    "ring" or "positions". `capacity` is the number of slots; 0 means a few more slots than the longest sequence has
    tokens."""

    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int = 0
    queries: int = 1
    page: int = 0
    layout: str = "slots"
    window: int = 0
    chunk: int = 0
    soft_cap: float = 0.0
    sinks: bool = False
    alibi: bool = False
    storage: str = ""
    splits: int = 0
    capacity: int = 0


def inputs(case: Case, random: Random) -> Inputs:
    """Return queries and a cache. Unused slots contain NaN, and pages are in random order."""
    slots = case.capacity or max(case.lengths) + 5
    cache, arguments = case_cache(random, case.lengths, slots, case.page, case.layout, case.queries, case.window)
    shapes = (case.kv_heads, case.head_dim), (case.kv_heads, case.value_dim or case.head_dim)
    for name, shape in zip("kv", shapes, strict=True):
        rows, scales = cache.rows(*shape, storage=case.storage)
        arguments |= {name: rows} | ({} if scales is None else {f"{name}_scales": scales})
    arguments["q"] = random.normal(len(case.lengths), case.heads, case.queries, case.head_dim)
    if case.sinks:
        arguments["sinks"] = random.normal(case.heads)
    if case.alibi:
        arguments["slopes"] = (2.0 ** -torch.arange(1.0, case.heads + 1)).to(random.device)
    options = {"window": case.window, "chunk": case.chunk, "soft_cap": case.soft_cap, "splits": case.splits}
    return arguments | {name: value for name, value in options.items() if value}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Return 2 · (H + V) FLOPs per head and visible pair. The bytes include each visible key and value once, with its
    scale."""
    pairs, keys = count_visible(case.lengths, case.queries, case.window, case.chunk)
    wide = case.head_dim + (case.value_dim or case.head_dim)
    row = wide + 8 if case.storage else wide * dtype.itemsize
    bytes_moved = keys * case.kv_heads * row + len(case.lengths) * case.queries * case.heads * wide * dtype.itemsize
    return Cost(flops=2 * wide * case.heads * pairs, bytes=bytes_moved)


def random_case(draw: Draw) -> Case:
    """Return a random case."""
    kv_heads, head_dim = draw.size(3), draw.size(256 if draw.chance(0.2) else 90)
    cache = random_cache(draw)
    return Case(
        heads=kv_heads * draw.size(24 if draw.chance(0.2) else 4),
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=draw.size(90) if draw.chance(0.3) else 0,
        chunk=draw.size(40) if draw.chance(0.2) else 0,
        soft_cap=draw.choice((1.0, 5.0, 30.0)) if draw.chance(0.3) else 0.0,
        sinks=draw.chance(0.3),
        alibi=draw.chance(0.3),
        **cache,
    )


KERNEL = Kernel(
    name="decode_attention",
    summary="attention of few queries on a cache: GQA, pages, windows, sinks, ALiBi, soft cap, quantised rows",
    run=decode_attention,
    reference=reference,
    inputs=inputs,
    cost=cost,
    reads_only=True,
    cases=[
        Case((37, 1, 0, 70), 6, 2, 64, queries=3, page=16, sinks=True, splits=3),
        Case((75, 140), 4, 1, 80, value_dim=48, soft_cap=5.0),
        Case((9, 33), 3, 3, 24, alibi=True, splits=2, queries=2),
        Case((50, 7), 20, 1, 16, queries=2, window=9, page=4, splits=2),
        Case((5, 23, 12), 2, 1, 32, layout="ring", window=12, sinks=True),
        Case((19, 6), 2, 2, 32, layout="positions", queries=2, chunk=8, splits=2),
        Case((40, 0), 4, 2, 32, storage="int8", splits=2),
        Case((21, 3), 2, 1, 32, storage="fp8", page=8),
        Case((0, 2, 9), 4, 2, 16, queries=3),  # queries that see no key
        Case((0, 2, 9), 4, 2, 16, queries=3, sinks=True),
    ],
    random_case=random_case,
    unit_stride=("table",),
    shapes=[
        Case((4096,) * 32, 32, 8, 128),
        Case((131072,), 64, 8, 128, page=16),
        Case((32768,) * 4, 64, 8, 64, window=128, sinks=True),
        Case((8192,) * 16, 16, 8, 256, soft_cap=50.0),
        Case((8192,) * 16, 128, 8, 128, queries=4, page=16),
        Case((8192,) * 16, 64, 8, 128, queries=8, storage="int8"),
        Case((8192,) * 16, 64, 8, 128, storage="int8"),
        Case((8192,) * 16, 64, 8, 128, storage="fp8"),
    ],
    allowances={
        "decode_split: mma.sync": "memory is the limit: 2 FLOPs per byte and row take a fifth of mma.sync's rate",
    },
)
