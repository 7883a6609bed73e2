"""Latent attention of few new queries on a cache of latents, in absorbed form.

    o = softmax((q_latent cᵀ + q_rope rᵀ) · scale) c

A cached token is its latent c and one rotated key r for all heads: together the key, c alone the value, so that each
latent is read once and serves both products (DeepSeek-V2, arXiv 2405.04434, section 2.1.2). The rows of a tile are
queries of several heads, r = s · N + n. With 16 heads memory bounds it; with 128 a pair costs 242 FLOPs a byte of bf16
and the tensor cores do. See `decoding` for slots, positions, windows and splits.

Arithmetic in fp32, products of fp32 rows in tf32. Quantised rows have two scales, of the latent and of the key: they
multiply the two parts of a score, and the first a weight.

Tokens that were chosen elsewhere (DeepSeek-V3.2's indexer) are a table of pages of one slot, with `causal` false.

B batch, N heads, S queries (1..8), T slots, C latent width (kv_lora_rank), R rotated width, P pages, M pages of a
sequence.
Shapes: q_latent [B, N, S, C], q_rope [B, N, S, R]; latent [B, T, C], rope [B, T, R], which may be views of one buffer,
or paged [P, page, C or R] with a table [B, M]; out [B, N, S, C]. Forward only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from llmbench.kernels.decoding.caches import (
    Held,
    allowed,
    caches,
    gathered,
    held_positions,
    masked_softmax,
    pairs_of,
    row_type,
    seen,
    span,
)
from llmbench.kernels.decoding.merge import (
    LOG2E,
    combine,
    key_positions_of,
    limits_of,
    pages_of,
    row_at,
    share_of,
    softmax_step,
    split_count,
)
from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random
from llmbench.kernels.launching import Config, architecture, choose, empty, launch, multiprocessors
from llmbench.kernels.products import dot, exactly

__all__ = ["KERNEL", "mla_decode", "reference"]


@triton.jit
def mla_split(
    q, q_rope, latent, rope, scales, out, sums, lengths, table, query_positions, key_positions,
    q_batch, q_head, q_token, r_batch, r_head, r_token, c_outer, c_slot, k_outer, k_slot, s_outer, s_slot, table_row,
    heads, tokens, capacity, splits, scale, window,
    WIDTH: tl.constexpr, ROPE: tl.constexpr, PAGE: tl.constexpr, RING: tl.constexpr, CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
    PARTS: tl.constexpr,
):  # fmt: skip
    """A program: one split of the slots of one sequence, for BLOCK_M rows r = s · N + n and BLOCK_C of the C columns:
    all, or one half where PARTS is 2, which multiplies with the `rest` for its scores. Programs of the same slots are
    neighbours. WHOLE: one split, and the result itself is written."""
    rows_at, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    split, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    row = rows_at * BLOCK_M + tl.arange(0, BLOCK_M)
    token, head = row // heads, (row % heads).to(tl.int64)
    wide, turned = part * BLOCK_C + tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    rest = (1 - part) * BLOCK_C + tl.arange(0, BLOCK_C)
    valid = token < tokens
    length = capacity
    if lengths is not None:
        length = tl.load(lengths + batch).to(tl.int32)
    _, low, high = limits_of(query_positions, batch, token, length, tokens, window, None, CAUSAL)
    SLOTS: tl.constexpr = key_positions is None and not RING
    start, end = share_of(low, high, length, capacity, split, splits, SLOTS, BLOCK_N)

    q_at = q + batch * q_batch + head[:, None] * q_head + token[:, None] * q_token
    queries = tl.load(q_at + wide[None, :], mask=valid[:, None] & (wide[None, :] < WIDTH), other=0.0)
    if PARTS == 2:
        q_rest = tl.load(q_at + rest[None, :], mask=valid[:, None] & (rest[None, :] < WIDTH), other=0.0)
    r_at = q_rope + batch * r_batch + head[:, None] * r_head + token[:, None] * r_token + turned[None, :]
    q_turned = tl.load(r_at, mask=valid[:, None] & (turned[None, :] < ROPE), other=0.0)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_C], tl.float32)
    page = pages_of(table, batch, start + tl.arange(0, BLOCK_N), end, table_row, PAGE)
    for first in range(start, end, BLOCK_N):
        slot = first + tl.arange(0, BLOCK_N)
        key = key_positions_of(key_positions, batch, slot, slot < end, length, capacity, RING)
        held = key >= 0  # an empty slot may hold NaN, which a weight of 0 does not undo
        c_at = latent + row_at(page, slot, c_outer, c_slot, PAGE)[:, None]
        c = exactly(tl.load(c_at + wide[None, :], mask=held[:, None] & (wide[None, :] < WIDTH), other=0.0), queries)
        scores = dot(queries, tl.trans(c))
        if PARTS == 2:
            d = tl.load(c_at + rest[None, :], mask=held[:, None] & (rest[None, :] < WIDTH), other=0.0)
            scores = dot(q_rest, tl.trans(exactly(d, queries)), scores)
        k_at = rope + row_at(page, slot, k_outer, k_slot, PAGE)[:, None] + turned[None, :]
        k = exactly(tl.load(k_at, mask=held[:, None] & (turned[None, :] < ROPE), other=0.0), queries)
        if scales is None:
            scores = dot(q_turned, tl.trans(k), scores)
        else:
            s_at = scales + row_at(page, slot, s_outer, s_slot, PAGE)
            c_scale = tl.load(s_at, mask=held, other=0.0)
            k_scale = tl.load(s_at + 1, mask=held, other=0.0)
            scores = scores * c_scale[None, :] + dot(q_turned, tl.trans(k)) * k_scale[None, :]
        weights, top, total, shrink = softmax_step(scores * (scale * LOG2E), key, low, high, top, total)
        if scales is not None:
            weights *= c_scale[None, :]
        acc = dot(weights.to(queries.dtype), c, acc * shrink[:, None])
        if PAGE:
            page = pages_of(table, batch, slot + BLOCK_N, end, table_row, PAGE)

    at = ((batch * heads + head) * tokens + token) * splits + split
    something = total > 0.0
    total = tl.where(something, total, 1.0)
    written = valid[:, None] & (wide[None, :] < WIDTH)
    if not WHOLE:
        one = valid & (token * 0 + part == 0)  # of two parts: their last digits differ
        tl.store(sums + at, tl.where(something, top + tl.log2(total), -float("inf")), mask=one)
        written = written & something[:, None]
    tl.store(
        out + at[:, None] * WIDTH + wide[None, :], (acc * (1.0 / total)[:, None]).to(out.dtype.element_ty), mask=written
    )


def configurations(rows: int, width: int, itemsize: int, stored: int, arch: int) -> list[Config]:
    """By rows of a tile, C as a power of two, and bytes of an element, as multiplied and as stored.

    Few heads are bound by memory: tiles of 32 latents and keys are 36 KB of bf16, two programs a multiprocessor have
    one each on the way while they compute on another. Many are bound by tensor cores, and sums of 64 x 512 leave a
    warpgroup no registers: 64 rows each, two warpgroups, and half of the columns, so that the scores are made twice.
    That is 65% of the products wanted; dividing the columns between the warpgroups of one program would do the same,
    and makes Triton multiply in narrower steps (and spill).
    """
    if itemsize == 4 or arch < 90:  # rows of twice the bytes, or less shared memory: what fits
        warps = 8 if stored == 1 else 4  # 8-bit elements take registers to widen
        note = "2 tiles of 9 to 36 KB held"
        return [Config(BLOCK_M=16, BLOCK_N=16, PARTS=1, num_warps=warps, num_stages=3, note=note)]
    if rows > 64 and width == 512:
        many = {"BLOCK_M": 128, "PARTS": 2, "num_warps": 8}
        small = Config(**many, BLOCK_N=16, num_stages=3, note="queries 144 KB, tiles of 18 KB, two on the way")
        if arch >= 100 or stored == 1:  # there scores pass through shared memory too; 8-bit elements take registers
            return [small]
        return [Config(**many, BLOCK_N=32, num_stages=2, note="queries 144 KB, a tile of 36 KB, one on the way"), small]
    if rows > 64:
        return [Config(BLOCK_M=64, BLOCK_N=32, PARTS=1, num_warps=4, num_stages=3, note="sums of 64 x 256 at most")]
    wide = rows > 16 or stored == 1
    few = {"BLOCK_M": 16 if rows <= 16 else 32, "PARTS": 1, "num_warps": 8 if wide else 4}
    return [
        Config(**few, BLOCK_N=32, num_stages=3 + wide, note="72 KB held by each of 2 programs, or 108 by one"),
        Config(**few, BLOCK_N=32, num_stages=2 + wide, note="a tile less"),
        Config(**few, BLOCK_N=64, num_stages=2, note="larger tiles, fewer turns"),
    ]


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
    batch, heads, tokens, width = q_latent.shape
    turned = q_rope.shape[-1]
    capacity, page = _sizes(latent, table)
    held = Held(lengths, table, key_positions, query_positions, ring, causal, window)
    out = empty(batch, heads, tokens, width, like=q_latent)
    if not out.numel():
        return out
    rows, arch = tokens * heads, architecture(q_latent.device)
    wide, r_wide = (max(16, triton.next_power_of_2(each)) for each in (width, turned))
    config = choose("mla_split", configurations(rows, wide, q_latent.element_size(), latent.element_size(), arch))
    tiles = triton.cdiv(rows, config["BLOCK_M"]) * config["PARTS"]
    if not splits:
        resident = multiprocessors(latent.device) * (2 if config.num_warps == 4 else 1)
        splits = split_count(batch * tiles, span(held, tokens, capacity), config["BLOCK_N"], resident)
    parts, sums = out, None
    if splits > 1:
        parts = empty(batch, heads, tokens, splits, width, like=out, dtype=torch.float32)
        sums = empty(batch, heads, tokens, splits, like=out, dtype=torch.float32)
    constants = {"WIDTH": width, "ROPE": turned, "BLOCK_C": wide // config["PARTS"], "BLOCK_R": r_wide}
    constants |= {"PAGE": page, "RING": ring, "CAUSAL": causal, "WHOLE": splits == 1}
    launch(
        mla_split,
        (tiles, splits, batch),
        config,
        *(q_latent, q_rope, latent, rope, scales, parts, sums, lengths, table, query_positions, key_positions),
        *(*q_latent.stride()[:3], *q_rope.stride()[:3], *latent.stride()[:2], *rope.stride()[:2]),
        *((0, 0) if scales is None else scales.stride()[:2]),
        *(0 if table is None else table.stride(0), heads, tokens, capacity, splits, scale, window),
        **constants,
    )
    if sums is not None:
        combine(parts, sums, None, out)
    return out


@_decode.register_fake
def _(q_latent: Tensor, *others: Any) -> Tensor:
    return q_latent.new_empty(q_latent.shape)


@register_flop_formula(torch.ops.llmbench.mla_decode, get_raw=True)
def _flops(q_latent: Tensor, q_rope: Tensor, latent: Tensor, rope: Tensor, *others: Any, out_val: Tensor) -> int:
    """2 · (2 C + R) a head and pair that is seen; with fake tensors, which have no lengths, all slots are in use."""
    held = Held(*others[1:8])
    batch, heads, tokens, width = q_latent.shape
    pairs = pairs_of(held, batch, tokens, _sizes(latent, held.table)[0])
    return 2 * (2 * width + q_rope.shape[-1]) * heads * pairs


def _sizes(latent: Tensor, table: Tensor | None) -> tuple[int, int]:
    """Slots of a sequence, and of a page, 0 where the cache is contiguous."""
    return (latent.shape[1], 0) if table is None else (table.shape[1] * latent.shape[1], latent.shape[1])


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
    """Absorbed attention of q_latent [B, N, S, C] and q_rope [B, N, S, R] on a cache latent [B, T, C] and rope
    [B, T, R], or paged [P, page, C or R] by `table` [B, M]; out [B, N, S, C].

    `scale` has no default: it is that of the heads before absorption. `scales`: of quantised rows, the latent's and the
    key's, [B, T, 2] or [P, page, 2]. The others as `decode_attention` has them. A query that sees no key gets zeros.

    Raises ValueError where shapes, dtypes or options do not fit together.
    """
    fits = q_latent.dim() == 4 and latent.dim() == 3 and q_latent.shape[:-1] == q_rope.shape[:-1]
    fits = fits and latent.shape[:-1] == rope.shape[:-1] and q_latent.dtype == q_rope.dtype
    if not fits or (q_latent.shape[-1], q_rope.shape[-1]) != (latent.shape[-1], rope.shape[-1]):
        shapes = ", ".join(str(tuple(x.shape)) for x in (q_latent, q_rope, latent, rope))
        raise ValueError(f"q_latent, q_rope, latent and rope do not fit together: {shapes}")
    if table is None and q_latent.shape[0] != latent.shape[0]:
        raise ValueError(f"{q_latent.shape[0]} sequences of queries, {latent.shape[0]} of latents")
    if q_latent.shape[-1] > 512 or not 1 <= q_rope.shape[-1] <= 64:
        raise ValueError(f"latents of {q_latent.shape[-1]} and keys of {q_rope.shape[-1]}: up to 512 and 1 to 64 go")
    for rows in (latent, rope):
        row_type(rows, scales is not None, q_latent)
    if scales is not None and tuple(scales.shape) != (*latent.shape[:-1], 2):
        raise ValueError(f"scales {tuple(scales.shape)} should be {(*latent.shape[:-1], 2)}")
    held = Held(lengths, table, key_positions, query_positions, ring, causal, window)
    held = held.checked(q_latent.shape[0], q_latent.shape[2], _sizes(latent, table)[0])
    q_latent, q_rope, latent, rope = (
        x if x.stride(-1) == 1 else x.contiguous() for x in (q_latent, q_rope, latent, rope)
    )
    scales = scales if scales is None or scales.stride(-1) == 1 else scales.contiguous()
    return _decode(q_latent, q_rope, latent, rope, scales, *held[:7], scale, splits)


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
    **where: Any,
) -> Tensor:
    """The same in plain torch: the cache gathered, scores of all slots, softmax in fp32 or wider."""
    held = Held(lengths, **where)
    capacity, _ = _sizes(latent, held.table)
    positions = held_positions(held, q_latent.shape[0], capacity, q_latent.device)
    one = 1 if held.table is None else 2  # where the dimension of heads would be
    parts = []
    for part, rows in enumerate((latent, rope)):
        of_part = None if scales is None else scales[..., part].unsqueeze(one)
        parts.append(gathered(rows.unsqueeze(one), of_part, held.table, positions, q_latent.dtype))
    keys = torch.cat(parts, dim=-1)  # [B, 1, T, C + R]
    scores = torch.cat((q_latent, q_rope), dim=-1) @ keys.transpose(-1, -2) * scale
    pairs, _ = allowed(held, q_latent.shape[2], positions)
    return masked_softmax(scores, pairs).to(q_latent.dtype) @ parts[0]


class Case(NamedTuple):
    """`lengths` of the sequences; 0 and "" for what is left out. `kept`: slots, ring, or given positions. `splits` 0:
    chosen. `apart`: latents and keys in two buffers."""

    lengths: tuple[int, ...]
    heads: int
    latent: int = 512
    rope: int = 64
    queries: int = 1
    page: int = 0
    kept: str = "slots"
    window: int = 0
    storage: str = ""
    splits: int = 0
    apart: bool = False


def inputs(case: Case, random: Random) -> Inputs:
    """A cache that is NaN wherever no token is held, in pages of random order."""
    cache, found = caches(random, case.lengths, max(case.lengths) + 5, case.page, case.kept, case.queries, case.window)
    head = 2 if case.page else 1
    if case.apart or case.storage:
        (latent, c_scales), (rope, k_scales) = (cache.rows(1, each, case.storage) for each in (case.latent, case.rope))
        if c_scales is not None and k_scales is not None:
            found["scales"] = torch.stack((c_scales, k_scales), dim=-1).squeeze(head)
    else:
        rows, _ = cache.rows(1, case.latent + case.rope)
        latent, rope = rows.split((case.latent, case.rope), dim=-1)
    found |= {"latent": latent.squeeze(head), "rope": rope.squeeze(head)}
    shape = len(case.lengths), case.heads, case.queries
    found["q_latent"], found["q_rope"] = random.normal(*shape, case.latent), random.normal(*shape, case.rope)
    found |= {"scale": (case.latent + case.rope) ** -0.5}
    return found | {name: value for name in ("window", "splits") if (value := getattr(case, name))}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Forward 2 · (2 C + R) a head and pair; each latent and key that a query sees is read once, with its scales."""
    pairs, keys = seen(case.lengths, case.queries, case.window, 0)
    row = case.latent + case.rope + 8 if case.storage else (case.latent + case.rope) * dtype.itemsize
    rows = len(case.lengths) * case.queries * case.heads
    moved = keys * row + rows * (2 * case.latent + case.rope) * dtype.itemsize
    return Cost(flops=2 * (2 * case.latent + case.rope) * case.heads * pairs, bytes=moved)


KERNEL = Kernel(
    name="mla_decode",
    summary="latent attention of few queries on a cache of latents, absorbed: pages, windows, quantised rows",
    run=mla_decode,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case((37, 1, 0, 70), 5, 64, 16, queries=3, page=16, splits=2),
        Case((90, 40), 40, 48, 24, apart=True),
        Case((70,), 16, 128, splits=2),
        Case((9, 50), 3, 32, 16, kept="ring", window=20),
        Case((19, 6), 3, 32, 16, kept="given", queries=2, window=7, splits=2),
        Case((40, 0), 4, 32, 16, storage="int8", splits=2),
        Case((21, 3), 4, 32, 16, storage="fp8", page=8),
        Case((35,), 65),
    ],
    shapes=[
        Case((8192,) * 64, 128, page=64),
        Case((8192,) * 64, 16),
        Case((32768,) * 4, 32, page=64),
        Case((8192,) * 64, 16, page=16, storage="int8"),
        Case((8192,) * 64, 128, page=64, storage="fp8"),
    ],
    allowances={
        "mla_split: mma.sync": "16 or 32 rows: 30 FLOPs a byte and 16 rows are a third of what mma.sync can do",
    },
)
