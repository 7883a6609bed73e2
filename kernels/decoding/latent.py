"""Latent attention (MLA) of a few new queries on a cache of latents, in absorbed form.

    o = softmax((q_latent cᵀ + q_rope rᵀ) · scale) c

A cached token is its latent c and one rotated key r, which all heads share. Both together are the key, and c alone is
the value, so each latent is read once and serves both products (DeepSeek-V2, arXiv 2405.04434, section 2.1.2). The rows
of a tile are queries of several heads, r = s · N + n. With 16 heads, memory bandwidth is the limit. With 128 heads, the
work is 242 FLOPs per byte of a bf16 cache, and the tensor cores are the limit. The docstring of merge.py defines slots,
positions, windows and splits; caches.py has the arguments that describe a cache.

Arithmetic is in fp32; fp32 rows are multiplied in tf32. A quantised row has two scales: one for the latent and one for
the rotated key. The scale of the latent multiplies q_latent cᵀ and the softmax weight. The scale of the rotated key
multiplies q_rope rᵀ.

To attend to selected tokens only (DeepSeek-V3.2's indexer), pass a table of pages with one slot each, and
`causal=False`.

B batch, N heads, S queries (1 to 8), T slots, C latent width (kv_lora_rank), R rotated width, P pages, M pages per
sequence. Shapes: q_latent [B, N, S, C], q_rope [B, N, S, R]; latent [B, T, C], rope [B, T, R], which may be views of
one buffer, or paged [P, page, C or R] with a table [B, M]; out [B, N, S, C]. Forward only.
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
    case_cache,
    check_row_type,
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
from llmbench.kernels.numeric import LOG2E, widened
from llmbench.kernels.products import dot

__all__ = ["KERNEL", "mla_decode", "reference"]


# == Kernels ==


@triton.jit
def _query_of(row, heads, SINGLE: tl.constexpr):
    """Return the query and the head of each row. SINGLE: each sequence has one query, so a row is a head."""
    if SINGLE:
        token, head = row * 0, row
    else:
        token, head = row // heads, row % heads
    return token, head.to(tl.int64)


@triton.jit
def mla_split(
    q, q_rope, latent, rope, scales, out, sums, lengths, table, query_positions, key_positions,
    q_batch, q_head, q_token, r_batch, r_head, r_token, c_outer, c_slot, k_outer, k_slot, s_outer, s_slot, table_row,
    tiles, heads, tokens, capacity, splits, scale, window,
    WIDTH: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr, RING: tl.constexpr, CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr, SINGLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
    BLOCK_R: tl.constexpr, PARTS: tl.constexpr, DIVIDE: tl.constexpr,
):  # fmt: skip
    """One program processes one split of the slots of one sequence, for BLOCK_M rows r = s · N + n and BLOCK_C columns.

    Row r is query s of head n. With PARTS = 1, the columns are all C columns of the latents. With PARTS = 2, they are
    one half of C. The program then also reads the other half, `rest`, because the scores need both halves. Programs
    that read the same slots have adjacent numbers. WHOLE: there is only one split, so the program writes the final
    result. DIVIDE: the two warpgroups of a program divide the columns of the scores, and then the columns of the sums.
    """
    tile, split = tl.program_id(0) % tiles, tl.program_id(1)
    rows_at, part, batch = tile // PARTS, tile % PARTS, (tl.program_id(0) // tiles).to(tl.int64)
    row = rows_at * BLOCK_M + tl.arange(0, BLOCK_M)
    token, head = _query_of(row, heads, SINGLE)
    far_token = token.to(tl.int64)[:, None]
    wide, rotary = part * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    rest = (1 - part) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = row < heads * tokens
    length = capacity
    if lengths is not None:
        length = tl.load(lengths + batch).to(tl.int32)
    _, low, high = visible_range(query_positions, batch, token, length, tokens, window, None, CAUSAL)
    SLOTS: tl.constexpr = key_positions is None and not RING
    start, end = split_range(low, high, length, capacity, split, splits, SLOTS, BLOCK_N)

    q_at = q + batch * q_batch + head[:, None] * q_head + far_token * q_token
    queries = tl.load(q_at + wide[None, :], mask=valid[:, None] & (wide[None, :] < WIDTH), other=0.0)
    if PARTS == 2:
        q_rest = tl.load(q_at + rest[None, :], mask=valid[:, None] & (rest[None, :] < WIDTH), other=0.0)
    r_at = q_rope + batch * r_batch + head[:, None] * r_head + far_token * r_token + rotary[None, :]
    q_rotary = tl.load(r_at, mask=valid[:, None] & (rotary[None, :] < ROPE), other=0.0)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    factor = scale * LOG2E
    # Without a window, splits start at multiples of BLOCK_N, so that a tile lies in one page.
    ONE_PAGE: tl.constexpr = PAGE > 0 and PAGE % BLOCK_N == 0 and window is None
    ahead = start if ONE_PAGE else start + tl.arange(0, BLOCK_N)
    page = load_pages(table, batch, ahead, end, table_row, PAGE)
    for first in range(start, end, BLOCK_N):
        slot = first + tl.arange(0, BLOCK_N)
        key = load_key_positions(key_positions, batch, slot, slot < end, length, capacity, RING)
        stored = (key >= 0)[:, None]  # an empty slot may contain NaN, and 0 · NaN is NaN
        c_at = latent + row_offsets(page, slot, c_outer, c_slot, PAGE)[:, None]
        c = widened(tl.load(c_at + wide[None, :], mask=stored & (wide[None, :] < WIDTH), other=0.0), queries)
        if PARTS == 2:
            d = tl.load(c_at + rest[None, :], mask=stored & (rest[None, :] < WIDTH), other=0.0)
            d = widened(d, queries)
        k_at = rope + row_offsets(page, slot, k_outer, k_slot, PAGE)[:, None] + rotary[None, :]
        k = widened(tl.load(k_at, mask=stored & (rotary[None, :] < ROPE), other=0.0), queries)
        if scales is None:
            c_factor, k_factor = factor, factor
        else:
            s_at = scales + row_offsets(page, slot, s_outer, s_slot, PAGE)
            c_scale = tl.load(s_at, mask=key >= 0, other=0.0)[None, :]
            k_scale = tl.load(s_at + 1, mask=key >= 0, other=0.0)[None, :]
            c_factor, k_factor = c_scale * factor, k_scale * factor
        if DIVIDE:
            rotated = dot(q_rotary, tl.trans(k)) * k_factor
            weights, shrink = rotated.to(queries.dtype), total
            # The condition is always true. If the products of this tile were in one block of code, each warpgroup
            # would compute all scores.
            if first < end:
                scores = dot(queries, tl.trans(c)) * c_factor + rotated
                shares, top, total, shrink = softmax_step(scores, key, low, high, top, total)
                if scales is not None:
                    shares *= c_scale
                weights = shares.to(queries.dtype)
        else:
            scores = dot(queries, tl.trans(c))
            if PARTS == 2:
                scores = dot(q_rest, tl.trans(d), scores)
            if scales is None:
                scores = dot(q_rotary, tl.trans(k), scores) * c_factor
            else:
                scores = scores * c_factor + dot(q_rotary, tl.trans(k)) * k_factor
            shares, top, total, shrink = softmax_step(scores, key, low, high, top, total)
            if scales is not None:
                shares *= c_scale
            weights = shares.to(queries.dtype)
        acc = dot(weights, c, acc * shrink[:, None])
        if PAGE:
            ahead = first + BLOCK_N if ONE_PAGE else slot + BLOCK_N
            page = load_pages(table, batch, ahead, end, table_row, PAGE)

    # `total` is never negative, but the compiler does not know that. So it computes the rows again here. Otherwise, the
    # rows would stay in registers during the loop, and registers would spill.
    row = tl.where(total < 0.0, 0, row)
    token, head = _query_of(row, heads, SINGLE)
    valid = row < heads * tokens
    at = ((batch * heads + head) * tokens + token) * splits + split
    sees_any = total > 0.0
    total = tl.where(sees_any, total, 1.0)
    written = valid[:, None] & (wide[None, :] < WIDTH)
    if not WHOLE:
        # Both parts compute the log-sum-exp, but the last digit may differ. Only part 0 writes its result, so that the
        # result does not depend on the order of the writes.
        writer = valid & (token * 0 + part == 0)
        tl.store(sums + at, tl.where(sees_any, top + tl.log2(total), -float("inf")), mask=writer)
        written = written & sees_any[:, None]
    tl.store(
        out + at[:, None] * WIDTH + wide[None, :], (acc * (1.0 / total)[:, None]).to(out.dtype.element_ty), mask=written
    )


# == Configurations and launcher ==


def configurations(rows: int, width: int, itemsize: int, stored: int, arch: int) -> list[Config]:
    """Return the candidate configurations. `rows`: rows of a tile. `width`: C as a power of two. `itemsize`: bytes per
    element in the matrix products. `stored`: bytes per element in the cache.

    With few heads, memory bandwidth is the limit. A tile of 32 latents and keys has 36 KB in bf16. Two programs run per
    multiprocessor, and each has one tile in flight while it computes on another tile.

    With many heads, the tensor cores are the limit, and sums of 64 x 512 would take all registers of a warpgroup. With
    DIVIDE, two warpgroups share 64 rows, and divide the columns of the scores and of the sums. No product is computed
    twice. Shared memory then limits a tile of 64 keys: 97 cycles per token and 128 rows, of which the tensor cores need
    68. With PARTS = 2, each of two warpgroups has 64 rows, and a program has half of the columns. The scores are then
    computed twice: 142 cycles, of which the tensor cores need 104.
    """
    # Only a small tile fits: fp32 rows have twice the bytes, and GPUs before sm_90 have less shared memory.
    if itemsize == 4 or arch < 90:
        # The conversion of 8-bit elements needs registers, so a program gets twice as many threads.
        warps = 8 if stored == 1 else 4
        note = "2 tiles of 9 to 36 KB in flight"
        return [Config(BLOCK_M=16, BLOCK_N=16, PARTS=1, DIVIDE=0, num_warps=warps, num_stages=3, note=note)]
    if rows > 64 and width == 512:
        shared = {"BLOCK_M": 64, "PARTS": 1, "DIVIDE": 1, "num_warps": 8}
        twice = {"BLOCK_M": 128, "PARTS": 2, "DIVIDE": 0, "num_warps": 8}
        small = Config(**twice, BLOCK_N=16, num_stages=3, note="queries take 144 KB; two tiles of 18 KB in flight")
        if arch >= 100:  # larger tiles do not fit, because sm_100 keeps scores in shared memory
            return [small]
        note = "scores once; the next tile of 72 KB is loaded only during the second product"
        first = Config(**shared, BLOCK_N=64, num_stages=2, note=note)
        note = "scores once, in products with fewer columns; two tiles in flight, so a tile loads during a whole turn"
        second = Config(**shared, BLOCK_N=32, num_stages=3, note=note)
        large = Config(**twice, BLOCK_N=32, num_stages=2, note="scores twice; one tile of 36 KB in flight")
        # The conversion of 8-bit rows needs registers. With tiles of 64 keys, it would spill 104 B with Triton 3.9.
        return [second, large, small] if stored == 1 else [first, second, large, small]
    if rows > 64:
        return [
            Config(BLOCK_M=64, BLOCK_N=32, PARTS=1, DIVIDE=0, num_warps=4, num_stages=3, note="at most 64 x 256 sums")
        ]
    wide = rows > 16 or stored == 1
    small_tile = {"BLOCK_M": 16 if rows <= 16 else 32, "PARTS": 1, "DIVIDE": 0, "num_warps": 8 if wide else 4}
    return [
        Config(
            **small_tile,
            BLOCK_N=32,
            num_stages=3 + wide,
            note="72 KB in flight per program if 2 run, 108 KB if one runs",
        ),
        Config(**small_tile, BLOCK_N=32, num_stages=2 + wide, note="one tile fewer in flight"),
        Config(**small_tile, BLOCK_N=64, num_stages=2, note="larger tiles, fewer iterations"),
    ]


# == Torch op ==


@torch.library.custom_op("llmbench::mla_decode", mutates_args=())
def _decode(
    q_latent: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    rope: Tensor,
    scales: Tensor | None,
    lengths: Tensor | None,
    table: Tensor | None,
    key_positions: Tensor | None,
    query_positions: Tensor | None,
    ring: bool,
    causal: bool,
    window: int | None,
    scale: float,
    splits: int,
) -> Tensor:
    """Compute out [B, N, S, C]. `mla_decode` has checked the arguments and made them contiguous."""
    batch, heads, tokens, width = q_latent.shape
    rotary_dim = q_rope.shape[-1]
    capacity, page = _sizes(latent, table)
    layout = CacheLayout(lengths, table, key_positions, query_positions, ring, causal, window)
    out = empty(batch, heads, tokens, width, like=q_latent)
    if not out.numel():
        return out
    rows, arch = tokens * heads, architecture(q_latent.device)
    wide, r_wide = (max(16, triton.next_power_of_2(x)) for x in (width, rotary_dim))
    config = choose("mla_split", configurations(rows, wide, q_latent.element_size(), latent.element_size(), arch))
    tiles = triton.cdiv(rows, config["BLOCK_M"]) * config["PARTS"]
    if not splits:
        resident = multiprocessors(latent.device) * (2 if config.num_warps == 4 else 1)
        splits = split_count(batch * tiles, readable_slots(layout, tokens, capacity), config["BLOCK_N"], resident)
    parts, sums = out, None
    if splits > 1:
        parts = empty(batch, heads, tokens, splits, width, like=out, dtype=torch.float32)
        sums = empty(batch, heads, tokens, splits, like=out, dtype=torch.float32)
    constants = {"WIDTH": width, "ROPE": rotary_dim, "BLOCK_C": wide // config["PARTS"], "BLOCK_R": r_wide}
    constants |= {"PAGE": page, "RING": ring, "CAUSAL": causal, "WHOLE": splits == 1, "SINGLE": tokens == 1}
    launch(
        mla_split,
        (tiles * batch, splits),
        config,
        *(q_latent, q_rope, latent, rope, scales, parts, sums, lengths, table, query_positions, key_positions),
        *(*q_latent.stride()[:3], *q_rope.stride()[:3], *latent.stride()[:2], *rope.stride()[:2]),
        *((0, 0) if scales is None else scales.stride()[:2]),
        *(0 if table is None else table.stride(0), tiles, heads, tokens, capacity, splits, scale, window),
        **constants,
    )
    if sums is not None:
        combine(parts, sums, None, out)
    return out


@_decode.register_fake
def _(q_latent: Tensor, *_: Any) -> Tensor:
    return q_latent.new_empty(q_latent.shape)


@register_flop_formula(torch.ops.llmbench.mla_decode, get_raw=True)
def _flops(q_latent: Tensor, q_rope: Tensor, latent: Tensor, rope: Any, scales: Any, *others: Any, **_: Any) -> int:
    """Return 2 · (2 C + R) FLOPs per head and visible pair. Fake tensors have no data, so all slots count as used."""
    layout = CacheLayout(*others[:7])
    batch, heads, tokens, width = q_latent.shape
    pairs = count_pairs(layout, batch, tokens, _sizes(latent, layout.table)[0])
    return 2 * (2 * width + q_rope.shape[-1]) * heads * pairs


def _sizes(latent: Tensor, table: Tensor | None) -> tuple[int, int]:
    """Return the number of slots per sequence and of slots per page. The last is 0 for a cache without pages."""
    return (latent.shape[1], 0) if table is None else (table.shape[1] * latent.shape[1], latent.shape[1])


# == Public op ==


def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    rope: Tensor,
    lengths: Tensor | None = None,
    *,
    scale: float,
    table: Tensor | None = None,
    key_positions: Tensor | None = None,
    query_positions: Tensor | None = None,
    ring: bool = False,
    causal: bool = True,
    window: int | None = None,
    scales: Tensor | None = None,
    splits: int = 0,
) -> Tensor:
    """Return [B, N, S, C], the absorbed attention of q_latent [B, N, S, C] and q_rope [B, N, S, R] on a cache.

    The cache is latent [B, T, C] and rope [B, T, R], or paged [P, page, C or R] with a `table` [B, M]. `scale` has no
    default, because it depends on the width of the heads before absorption. Quantised rows have `scales` [B, T, 2] or
    [P, page, 2]: one for the latent and one for the rotated key. `decode_attention` explains the other arguments. A
    query that sees no key gets zeros.

    Raises ValueError for shapes, dtypes or options that do not match, and CannotRunError for fp8 rows on a GPU without
    fp8.
    """
    match = q_latent.dim() == 4 and latent.dim() == 3 and q_latent.shape[:-1] == q_rope.shape[:-1]
    match = match and latent.shape[:-1] == rope.shape[:-1] and q_latent.dtype == q_rope.dtype
    if not match or (q_latent.shape[-1], q_rope.shape[-1]) != (latent.shape[-1], rope.shape[-1]):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_latent, q_rope, latent, rope))
        raise ValueError(f"the shapes of q_latent, q_rope, latent and rope do not match: {shapes}")
    if table is None and q_latent.shape[0] != latent.shape[0]:
        raise ValueError(f"queries have {q_latent.shape[0]} sequences, but latents have {latent.shape[0]}")
    if q_latent.shape[-1] > 512 or not 1 <= q_rope.shape[-1] <= 64:
        raise ValueError(
            f"latents have width {q_latent.shape[-1]}, and may have up to 512; "
            f"rotated keys have width {q_rope.shape[-1]} and may have 1 to 64"
        )
    for rows in (latent, rope):
        check_row_type(rows, scales is not None, q_latent)
    if scales is not None and tuple(scales.shape) != (*latent.shape[:-1], 2):
        raise ValueError(f"scales has shape {tuple(scales.shape)}, but must have {(*latent.shape[:-1], 2)}")
    check_splits(splits)
    layout = CacheLayout(lengths, table, key_positions, query_positions, ring, causal, window)
    layout = layout.checked(q_latent.shape[0], q_latent.shape[2], _sizes(latent, table)[0])
    q_latent, q_rope, latent, rope = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q_latent, q_rope, latent, rope)
    )
    scales = scales if scales is None or scales.stride(-1) == 1 else scales.contiguous()
    return _decode(q_latent, q_rope, latent, rope, scales, *layout[:7], scale, splits)


# == Reference ==


def reference(
    q_latent: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    rope: Tensor,
    lengths: Tensor | None = None,
    *,
    scale: float,
    scales: Tensor | None = None,
    splits: int = 0,
    **cache: Any,
) -> Tensor:
    """Compute latent attention in plain torch: gather the cache, score all slots, and take the softmax in fp32 or
    wider."""
    layout = CacheLayout(lengths, **cache)
    capacity, _ = _sizes(latent, layout.table)
    positions = slot_positions(layout, q_latent.shape[0], capacity, q_latent.device)
    head = 1 if layout.table is None else 2  # index of the inserted head dimension
    parts = []
    for part, rows in enumerate((latent, rope)):
        part_scales = None if scales is None else scales[..., part].unsqueeze(head)
        parts.append(gather_rows(rows.unsqueeze(head), part_scales, layout.table, positions, q_latent.dtype))
    keys = torch.cat(parts, dim=-1)  # [B, 1, T, C + R]
    scores = torch.cat((q_latent, q_rope), dim=-1) @ keys.transpose(-1, -2) * scale
    pairs, _ = visible(layout, q_latent.shape[2], positions)
    return masked_softmax(scores, pairs).to(q_latent.dtype) @ parts[0]


# == Cases and cost ==


class Case(NamedTuple):
    """Lengths of the sequences, heads, widths and options. An option that is 0 or "" is not used. `layout` is "slots",
    "ring" or "positions". With `apart`, latents and rotated keys are in two buffers."""

    lengths: tuple[int, ...]
    heads: int
    latent: int = 512
    rope: int = 64
    queries: int = 1
    page: int = 0
    layout: str = "slots"
    window: int = 0
    storage: str = ""
    splits: int = 0
    apart: bool = False


def inputs(case: Case, random: Random) -> Inputs:
    """Return queries and a cache. Unused slots contain NaN, and pages are in random order."""
    cache, arguments = case_cache(
        random, case.lengths, max(case.lengths) + 5, case.page, case.layout, case.queries, case.window
    )
    head = 2 if case.page else 1
    if case.apart or case.storage:
        (latent, c_scales), (rope, k_scales) = (
            cache.rows(1, width, case.storage) for width in (case.latent, case.rope)
        )
        if c_scales is not None and k_scales is not None:
            arguments["scales"] = torch.stack((c_scales, k_scales), dim=-1).squeeze(head)
    else:
        rows, _ = cache.rows(1, case.latent + case.rope)
        latent, rope = rows.split((case.latent, case.rope), dim=-1)
    arguments |= {"latent": latent.squeeze(head), "rope": rope.squeeze(head)}
    shape = len(case.lengths), case.heads, case.queries
    arguments["q_latent"], arguments["q_rope"] = random.normal(*shape, case.latent), random.normal(*shape, case.rope)
    arguments |= {"scale": (case.latent + case.rope) ** -0.5}
    return arguments | {name: value for name in ("window", "splits") if (value := getattr(case, name))}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Return 2 · (2 C + R) FLOPs per head and visible pair. The bytes include each visible latent and rotated key once,
    with its scales."""
    pairs, keys = count_visible(case.lengths, case.queries, case.window, 0)
    row = case.latent + case.rope + 8 if case.storage else (case.latent + case.rope) * dtype.itemsize
    rows = len(case.lengths) * case.queries * case.heads
    bytes_moved = keys * row + rows * (2 * case.latent + case.rope) * dtype.itemsize
    return Cost(flops=2 * (2 * case.latent + case.rope) * case.heads * pairs, bytes=bytes_moved)


def random_case(draw: Draw) -> Case:
    """Return a random case."""
    return Case(
        heads=draw.size(130 if draw.chance(0.2) else 20),
        latent=draw.size(512 if draw.chance(0.2) else 80),
        rope=draw.size(64),
        apart=draw.chance(0.3),
        **random_cache(draw),
    )


KERNEL = Kernel(
    name="mla_decode",
    summary="latent attention of few queries on a cache of latents, absorbed: pages, windows, quantised rows",
    run=mla_decode,
    reference=reference,
    inputs=inputs,
    cost=cost,
    reads_only=True,
    cases=[
        Case((37, 1, 0, 70), 5, 64, 16, queries=3, page=16, splits=2),
        Case((90, 40), 40, 48, 24, apart=True),
        Case((70,), 16, 128, splits=2),
        Case((9, 50), 3, 32, 16, layout="ring", window=20),
        Case((19, 6), 3, 32, 16, layout="positions", queries=2, window=7, splits=2),
        Case((40, 0), 4, 32, 16, storage="int8", splits=2),
        Case((21, 3), 4, 32, 16, storage="fp8", page=8),
        Case((35,), 65),
        Case((70, 1, 130), 65, page=64, splits=2),
        Case((21, 0, 40), 33, queries=2, page=32, storage="int8"),
        Case((0, 2, 9), 3, 32, 16, queries=3),  # queries that see no key
    ],
    random_case=random_case,
    unit_stride=("table",),
    shapes=[
        Case((8192,) * 64, 128, page=64),
        Case((8192,) * 64, 16),
        Case((32768,) * 4, 32, page=64),
        Case((8192,) * 64, 16, page=16, storage="int8"),
        Case((8192,) * 64, 128, page=64, storage="fp8"),
    ],
    allowances={
        "mla_split: spills at most 64 B": "Triton 3.9 keeps 16 B of the descriptors of queries in local memory, "
        "Triton 3.6 none; a tile of 32 keys spills nothing, but takes 1.4 times the cycles",
        "mla_split: mma.sync": "memory is the limit: 16 rows have 30 FLOPs per byte of bf16, and 32 rows or int8 60; "
        "mma.sync computes 90 in the time of a byte",
    },
)
