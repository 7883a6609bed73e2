"""Attention of few new queries on a cache: every key is read once, and memory bandwidth is the limit.

    o = softmax(cap · tanh(q kᵀ · scale / cap) + slope · (key position - query position)) v,  with e^sink in the sum

The G = N / K query heads of a KV head and their S queries are the rows of one tile, so that a key serves all of them:
up to 16 or 32 rows by mma.sync, which is far from its limit at 2 · rows FLOPs a byte, 64 by wgmma. The slots of a
sequence are split over programs and combined by log-sum-exp: Flash-Decoding (Dao et al., PyTorch blog, 2023); online
softmax: Milakov and Gimelshein, arXiv 1805.02867. Pages: Kwon et al., arXiv 2309.06180. Sinks: gpt-oss; ALiBi:
arXiv 2108.12409. See `decoding` for slots, positions, windows, chunks and splits; the kernel stands in
decode_split.py.

Arithmetic in fp32, products of fp32 rows in tf32. Quantised rows: an int8 or e4m3 element is exact in fp16 and bf16, so
the scale of a key multiplies its score, and the scale of a value its weight.

B batch, N query heads, K KV heads, S queries (1..8), T slots, H key width, V value width, P pages, M pages a sequence.
Shapes: q [B, N, S, H]; k, v [B, K, T, H or V], or paged [P, page, K, H or V] with a table [B, M]; out [B, N, S, V].
Forward only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from llmbench.kernels.decoding.caches import (
    Held,
    Places,
    allowed,
    caches,
    gathered,
    held_positions,
    in_order,
    masked_softmax,
    pairs_of,
    row_type,
    seen,
    span,
)
from llmbench.kernels.decoding.merge import combine, split_count
from llmbench.kernels.decoding.split import configurations, decode_split, resident_programs
from llmbench.kernels.kernel import Cost, Inputs, Kernel, Random
from llmbench.kernels.launching import architecture, choose, empty, launch, multiprocessors

__all__ = ["KERNEL", "decode_attention", "reference"]


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
    batch, heads, tokens, width = q.shape
    kv_heads, capacity, page = _sizes(k, table)
    v_width, group = v.shape[-1], heads // kv_heads
    held = Held(lengths, table, key_positions, query_positions, ring, causal, window, chunk)
    out = empty(batch, heads, tokens, v_width, like=q)
    if not out.numel():
        return out
    arch, rows = architecture(q.device), tokens * group
    wide, v_wide = (max(16, triton.next_power_of_2(each)) for each in (width, v_width))
    widest, stored = max(wide, v_wide), k.element_size()
    config = choose("decode_split", configurations(rows, widest, q.element_size(), stored, arch))
    tiles = triton.cdiv(rows, config["BLOCK_M"])
    if not splits:
        resident = resident_programs(config, widest, stored, arch) * multiprocessors(q.device)
        splits = split_count(batch * kv_heads * tiles, span(held, tokens, capacity), config["BLOCK_N"], resident)
    parts, sums = out, None
    if splits > 1:
        parts = empty(batch, heads, tokens, splits, v_width, like=q, dtype=torch.float32)
        sums = empty(batch, heads, tokens, splits, like=q, dtype=torch.float32)
    at, v_at = Places.of(k, bool(page)), Places.of(v, bool(page))
    scales_at = Places.of(k_scales, bool(page)) if k_scales is not None else Places(0, 0, 0)
    constants = {"GROUP": group, "WIDTH": width, "V_WIDTH": v_width, "BLOCK_H": wide, "BLOCK_V": v_wide}
    constants |= {"PAGE": page, "RING": ring, "CAUSAL": causal, "WHOLE": splits == 1}
    launch(
        decode_split,
        (tiles, splits, batch * kv_heads),
        config,
        *(q, k, v, k_scales, v_scales, parts, sums, sinks if splits == 1 else None, slopes),
        *(lengths, table, query_positions, key_positions),
        *(*q.stride()[:3], *at, *v_at, *scales_at, 0 if table is None else table.stride(0)),
        *(tokens, capacity, splits, kv_heads, scale, soft_cap, window, chunk),
        **constants,
    )
    if sums is not None:
        combine(parts, sums, sinks, out)
    return out


@_decode.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *others: Any) -> Tensor:
    return q.new_empty(*q.shape[:3], v.shape[-1])


@register_flop_formula(torch.ops.llmbench.decode_attention, get_raw=True)
def _flops(q: Tensor, k: Tensor, v: Tensor, *others: Any, out_val: Tensor) -> int:
    """2 · (H + V) a head and pair that is seen; with fake tensors, which have no lengths, all slots are in use."""
    held = Held(*others[4:12])
    _, capacity, _ = _sizes(k, held.table)
    return 2 * (q.shape[-1] + v.shape[-1]) * q.shape[1] * pairs_of(held, q.shape[0], q.shape[2], capacity)


def _sizes(k: Tensor, table: Tensor | None) -> tuple[int, int, int]:
    """KV heads, slots of a sequence, and slots of a page, 0 where the cache is contiguous."""
    if table is None:
        return k.shape[1], k.shape[2], 0
    return k.shape[2], table.shape[1] * k.shape[1], k.shape[1]


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
    """Attention of q [B, N, S, H] on a cache k [B, K, T, H], v [B, K, T, V], or paged [P, page, K, H or V] by `table`
    [B, M]; out [B, N, S, V].

    `lengths` [B]: tokens of each sequence, the S queries included, which are its last ones unless `query_positions`
    [B, S] says otherwise; without it every slot is in use. `key_positions` [B, T] and `ring`: see `decoding`. `sinks`
    and ALiBi's `slopes` [N]. `k_scales`, `v_scales`: of quantised rows, shaped as the cache without its last dimension.
    A query that sees no key gets zeros. `splits` 0: as many as fill the device.

    Raises ValueError where shapes, dtypes or options do not fit together.
    """
    kv_heads, capacity, _ = _sizes(k, table)
    if q.dim() != 4 or k.dim() != 4 or v.shape[:-1] != k.shape[:-1] or q.shape[-1] != k.shape[-1]:
        raise ValueError(f"q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit together")
    if q.shape[1] % kv_heads or (table is None and q.shape[0] != k.shape[0]):
        raise ValueError(f"q {tuple(q.shape)} and k {tuple(k.shape)} differ in sequences or in whole groups of heads")
    if max(q.shape[-1], v.shape[-1]) > 256:
        raise ValueError(f"heads of {max(q.shape[-1], v.shape[-1])} are wider than 256; see mla_decode")
    for rows, scales in ((k, k_scales), (v, v_scales)):
        row_type(rows, scales is not None, q)
        if scales is not None and scales.shape != rows.shape[:-1]:
            raise ValueError(f"scales {tuple(scales.shape)} do not fit rows {tuple(rows.shape)}")
    if k.dtype != v.dtype:
        raise ValueError(f"keys are {k.dtype}, values {v.dtype}")
    for name, values in (("sinks", sinks), ("slopes", slopes)):
        if values is not None and tuple(values.shape) != (q.shape[1],):
            raise ValueError(f"{name} {tuple(values.shape)} should be one for each of {q.shape[1]} heads")
    held = Held(lengths, table, key_positions, query_positions, ring, causal, window, chunk)
    held = held.checked(q.shape[0], q.shape[2], capacity)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    if k_scales is not None and v_scales is not None and k_scales.stride() != v_scales.stride():
        k_scales, v_scales = k_scales.contiguous(), v_scales.contiguous()
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    sinks, slopes = in_order(sinks), in_order(slopes)
    return _decode(q, k, v, k_scales, v_scales, sinks, slopes, *held, soft_cap, scale, splits)


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
    **where: Any,
) -> Tensor:
    """The same in plain torch: the cache gathered, scores of all slots, softmax in fp32 or wider."""
    held = Held(lengths, **where)
    table = held.table
    _, capacity, _ = _sizes(k, table)
    positions = held_positions(held, q.shape[0], capacity, q.device)
    keys, values = gathered(k, k_scales, table, positions, q.dtype), gathered(v, v_scales, table, positions, q.dtype)
    group = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, dim=1), values.repeat_interleave(group, dim=1)
    scores = q @ keys.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if soft_cap is not None:
        scores = soft_cap * torch.tanh(scores / soft_cap)
    pairs, queries = allowed(held, q.shape[2], positions)
    if slopes is not None:
        scores = scores + slopes[:, None, None] * (positions[:, None, :] - queries[:, :, None])[:, None]
    return masked_softmax(scores, pairs, sinks).to(q.dtype) @ values


class Case(NamedTuple):
    """`lengths` of the sequences; 0 and "" for what is left out. `kept`: slots, ring, or given positions. `capacity` 0:
    as many slots as the longest sequence has, and a few; `splits` 0: chosen."""

    lengths: tuple[int, ...]
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int = 0
    queries: int = 1
    page: int = 0
    kept: str = "slots"
    window: int = 0
    chunk: int = 0
    soft_cap: float = 0.0
    sinks: bool = False
    alibi: bool = False
    storage: str = ""
    splits: int = 0
    capacity: int = 0


def inputs(case: Case, random: Random) -> Inputs:
    """A cache that is NaN wherever no token is held, in pages of random order."""
    slots = case.capacity or max(case.lengths) + 5
    cache, found = caches(random, case.lengths, slots, case.page, case.kept, case.queries, case.window)
    shapes = (case.kv_heads, case.head_dim), (case.kv_heads, case.value_dim or case.head_dim)
    for name, shape in zip("kv", shapes, strict=True):
        rows, scales = cache.rows(*shape, storage=case.storage)
        found |= {name: rows} | ({} if scales is None else {f"{name}_scales": scales})
    found["q"] = random.normal(len(case.lengths), case.heads, case.queries, case.head_dim)
    if case.sinks:
        found["sinks"] = random.normal(case.heads)
    if case.alibi:
        found["slopes"] = (2.0 ** -torch.arange(1.0, case.heads + 1)).to(random.device)
    options = {"window": case.window, "chunk": case.chunk, "soft_cap": case.soft_cap, "splits": case.splits}
    return found | {name: value for name, value in options.items() if value}


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Forward 2 · (H + V) a head and pair; each key and value that a query sees is read once, with its scale."""
    pairs, keys = seen(case.lengths, case.queries, case.window, case.chunk)
    wide = case.head_dim + (case.value_dim or case.head_dim)
    row = wide + 8 if case.storage else wide * dtype.itemsize
    moved = keys * case.kv_heads * row + len(case.lengths) * case.queries * case.heads * wide * dtype.itemsize
    return Cost(flops=2 * wide * case.heads * pairs, bytes=moved)


KERNEL = Kernel(
    name="decode_attention",
    summary="attention of few queries on a cache: GQA, pages, windows, sinks, ALiBi, soft cap, quantised rows",
    run=decode_attention,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case((37, 1, 0, 70), 6, 2, 64, queries=3, page=16, sinks=True, splits=3),
        Case((75, 140), 4, 1, 80, value_dim=48, soft_cap=5.0),
        Case((9, 33), 3, 3, 24, alibi=True, splits=2, queries=2),
        Case((50, 7), 20, 1, 16, queries=2, window=9, page=4, splits=2),
        Case((5, 23, 12), 2, 1, 32, kept="ring", window=12, sinks=True),
        Case((19, 6), 2, 2, 32, kept="given", queries=2, chunk=8, splits=2),
        Case((40, 0), 4, 2, 32, storage="int8", splits=2),
        Case((21, 3), 2, 1, 32, storage="fp8", page=8),
    ],
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
        "decode_split: mma.sync": "16 or 32 rows: 2 FLOPs a byte and row are a fifth of what mma.sync can do",
    },
)
