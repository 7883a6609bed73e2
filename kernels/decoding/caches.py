"""The caches that the decode kernels read: where rows are, which tokens they store, and which queries see them.

This file is plain torch. It checks the arguments, computes masks and gathers rows for the references, counts visible
pairs, and creates caches for test cases. The docstring of merge.py defines lengths, table, positions, ring, window and
chunk.

B batch, S queries of a sequence, T slots, K KV heads, N query heads, W width of a row, M pages per sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from llmbench.errors import CannotRunError
from llmbench.kernels.kernel import Draw, Inputs, Random
from llmbench.kernels.launching import architecture

__all__ = [
    "CacheLayout",
    "CaseCache",
    "RowStrides",
    "case_cache",
    "check_row_type",
    "contiguous",
    "count_pairs",
    "count_visible",
    "gather_rows",
    "masked_softmax",
    "random_cache",
    "readable_slots",
    "slot_positions",
    "visible",
]

MAX_SLOTS = 1 << 30  # kernels use this position as one after every token

QUANTISED = {"int8": (torch.int8, 127.0), "fp8": (torch.float8_e4m3fn, 448.0)}
"""The formats of quantised rows that the kernels read, each with its largest value."""


# == Arguments ==


class RowStrides(NamedTuple):
    """Strides of a cache's rows, in elements: from one sequence or page to the next, from one head to the next, and
    from one slot to the next."""

    outer: int
    head: int
    slot: int

    @classmethod
    def from_rows(cls, rows: Tensor, paged: bool) -> RowStrides:
        """Return the strides of rows [B, K, T, ...], or [pages, page, K, ...] if paged."""
        outer, one, two = rows.stride()[:3]
        return cls(outer, two, one) if paged else cls(outer, one, two)


def contiguous(values: Tensor | None) -> Tensor | None:
    """Return the values in contiguous memory. A copy is cheap, because the tensors are small: integers and sinks."""
    return None if values is None else values.contiguous()


def check_row_type(rows: Tensor, scaled: bool, like: Tensor) -> None:
    """Raise ValueError unless a cache's rows have the dtype of the queries, or are quantised and have scales.

    Raises CannotRunError if the GPU has no instructions for the rows' dtype."""
    if scaled != any(rows.dtype == dtype for dtype, _ in QUANTISED.values()):
        raise ValueError(f"a cache of {rows.dtype} {'takes no' if scaled else 'needs'} scales")
    if not scaled and rows.dtype != like.dtype:
        raise ValueError(f"queries are {like.dtype} but the cache is {rows.dtype}; both must have one dtype")
    if rows.dtype == torch.float8_e4m3fn and architecture(rows.device) < 89:
        raise CannotRunError("a cache in fp8 needs compute capability 8.9", hint="a cache in int8 runs on every GPU")


class CacheLayout(NamedTuple):
    """The tokens that a cache stores, their slots, and the mask of the queries. These are arguments of the ops.

    Shapes: lengths [B], table [B, M], key_positions [B, T], query_positions [B, S]. merge.py defines them.
    """

    lengths: Tensor | None = None
    table: Tensor | None = None
    key_positions: Tensor | None = None
    query_positions: Tensor | None = None
    ring: bool = False
    causal: bool = True
    window: int | None = None
    chunk: int | None = None

    def checked(self, batch: int, tokens: int, capacity: int) -> CacheLayout:
        """Return the same layout with contiguous tensors. Raises ValueError if its fields contradict each other."""
        for name, values, shape in (
            ("lengths", self.lengths, (batch,)),
            ("key_positions", self.key_positions, (batch, capacity)),
            ("query_positions", self.query_positions, (batch, tokens)),
        ):
            if values is not None and tuple(values.shape) != shape:
                raise ValueError(f"{name} has shape {tuple(values.shape)}, but must have {shape}")
        if capacity > MAX_SLOTS:
            raise ValueError(f"a sequence has {capacity:,} slots; at most {MAX_SLOTS:,} are supported")
        if self.table is not None and (self.table.dim() != 2 or self.table.shape[0] != batch):
            raise ValueError(f"table has shape {tuple(self.table.shape)}, but must have ({batch}, pages)")
        if self.table is not None and self.table.stride(-1) != 1:
            raise ValueError("the last stride of table must be 1")
        if self.lengths is None and self.key_positions is None and self.causal and self.query_positions is None:
            raise ValueError("the positions of the queries are unknown: give lengths or query_positions")
        if self.lengths is None and self.query_positions is None and self.causal:
            raise ValueError("key_positions are given without lengths: give query_positions too")
        if self.window is not None and (self.window < 1 or not self.causal):
            raise ValueError(f"window={self.window} must be at least 1 and needs causal=True")
        if self.chunk is not None and (self.chunk < 1 or not self.causal):
            raise ValueError(f"chunk={self.chunk} must be at least 1 and needs causal=True")
        if self.ring:
            if self.lengths is None or self.table is not None or self.key_positions is not None:
                raise ValueError("a ring needs lengths, and takes neither table nor key_positions")
            if self.window is None or capacity < self.window + tokens - 1:
                raise ValueError(
                    f"a ring of {capacity} slots is too small for {tokens} queries; it needs window + queries - 1"
                )
        return self._replace(
            lengths=contiguous(self.lengths),
            key_positions=contiguous(self.key_positions),
            query_positions=contiguous(self.query_positions),
        )

    @property
    def by_slot(self) -> bool:
        """Whether slot t stores the token at position t."""
        return not self.ring and self.key_positions is None


# == Masks in plain torch ==


def readable_slots(layout: CacheLayout, tokens: int, capacity: int) -> int:
    """Return the greatest number of slots that the queries of one sequence may read. It depends only on shapes and
    options."""
    within = [limit for limit in (layout.window, layout.chunk) if limit is not None]
    if not within or not layout.by_slot:
        return capacity
    return min(capacity, min(within) + tokens - 1)


def slot_positions(layout: CacheLayout, batch: int, capacity: int, device: torch.device) -> Tensor:
    """Return the positions [B, T] of the tokens in all slots. An empty slot has a negative position."""
    slots = torch.arange(capacity, device=device).expand(batch, -1)
    lengths = layout.lengths
    if layout.key_positions is not None:
        positions = layout.key_positions.long()
    elif layout.ring:
        assert lengths is not None
        positions = lengths[:, None] - 1 - (lengths[:, None] - 1 - slots) % capacity
    else:
        positions = slots
    return positions if lengths is None else torch.where(slots < lengths[:, None], positions, -1)


def visible(layout: CacheLayout, tokens: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return whether each query sees each key [B, S, T], and the positions of the queries [B, S].

    `positions` [B, T] are the positions of the keys. `tokens`: the number of queries S.
    """
    if layout.query_positions is not None:
        queries = layout.query_positions.long()
    elif layout.lengths is not None:
        queries = layout.lengths[:, None].long() - tokens + torch.arange(tokens, device=positions.device)
    else:
        queries = torch.zeros(positions.shape[0], tokens, dtype=torch.int64, device=positions.device)
    query, key = queries[:, :, None], positions[:, None, :]
    pairs = (key >= 0).expand(-1, tokens, -1)
    if layout.causal:
        pairs = pairs & (key <= query)
    if layout.window is not None:
        pairs = pairs & (key > query - layout.window)
    if layout.chunk is not None:
        pairs = pairs & (key >= query - query % layout.chunk)
    return pairs, queries


def count_visible(
    lengths: Sequence[int], tokens: int, window: int | None, chunk: int | None, *, causal: bool = True
) -> tuple[int, int]:
    """Return two numbers: the visible query-key pairs, and the keys that at least one query sees. The queries are the
    last `tokens` tokens of each sequence."""
    if not causal:
        return sum(lengths) * tokens, sum(lengths)
    pairs = keys = 0
    for length in lengths:
        first, end = length, 0
        for query in range(max(0, length - tokens), length):
            low = max(0, query - window + 1) if window else 0
            low = max(low, query - query % chunk) if chunk else low
            pairs += query + 1 - low
            first, end = min(first, low), query + 1
        keys += max(0, end - first)
    return pairs, keys


def count_pairs(layout: CacheLayout, batch: int, tokens: int, capacity: int) -> int:
    """Return the number of visible query-key pairs of one head in the batch. Fake tensors have no data, so all slots
    count as used."""
    tensors = [x for x in (layout.lengths, layout.key_positions, layout.query_positions) if x is not None]
    if any(isinstance(x, FakeTensor) or x.is_meta for x in tensors):
        return count_visible([capacity] * batch, tokens, layout.window, layout.chunk, causal=layout.causal)[0]
    device = tensors[0].device if tensors else torch.device("cpu")
    pairs, _ = visible(layout, tokens, slot_positions(layout, batch, capacity, device))
    return int(pairs.sum())


def gather_rows(
    rows: Tensor, scales: Tensor | None, table: Tensor | None, positions: Tensor, dtype: torch.dtype
) -> Tensor:
    """Return the rows of all slots as [B, K, T, W] in `dtype`. Rows of empty slots, whose `positions` [B, T] are
    negative, are 0."""
    if scales is not None:
        wide = torch.promote_types(dtype, torch.float32)
        rows = (rows.to(wide) * scales[..., None]).to(dtype)
    if table is not None:
        rows = rows[table.long()].flatten(1, 2).transpose(1, 2)
    return rows.masked_fill((positions < 0)[:, None, :, None], 0.0)


def masked_softmax(scores: Tensor, pairs: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Return the attention weights [B, N, S, T] over the visible `pairs` [B, S, T], in fp32 or wider. A query that sees
    no key has weights of 0."""
    scores = scores.masked_fill(~pairs[:, None], -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights[..., : pairs.shape[-1]].masked_fill(~pairs[:, None], 0.0)


# == Caches of cases ==


class CaseCache(NamedTuple):
    """The slots of a case's cache: the `shape` (B, T) or (pages, page) of its rows, and a mask of `unused` slots."""

    random: Random
    shape: tuple[int, int]
    unused: Tensor | None
    paged: bool

    def rows(self, heads: int, width: int, storage: str = "") -> tuple[Tensor, Tensor | None]:
        """Return random rows [B, K, T, W] or [pages, page, K, W], and their scales if `storage` quantises them.

        Unused rows are NaN. If rows are quantised, the scales of unused rows are NaN.
        """
        outer, inner = self.shape
        shape = (outer, inner, heads) if self.paged else (outer, heads, inner)
        rows = self.random.normal(*shape, width)
        scales = None
        if storage:
            dtype, most = QUANTISED[storage]
            scales = self.random.normal(*shape, dtype=torch.float32)
            if self.random.shapes_only:
                return rows.to(dtype), scales
            scales = rows.float().abs().amax(dim=-1) / most
            rows = rows.float() / scales[..., None]
            rows = (rows if dtype.is_floating_point else rows.round()).to(dtype)
        if self.unused is not None:
            unused = self.unused[:, :, None] if self.paged else self.unused[:, None, :]
            if scales is None:
                rows.masked_fill_(unused[..., None], torch.nan)
            else:
                scales.masked_fill_(unused, torch.nan)
        return rows, scales


def random_cache(draw: Draw) -> dict[str, Any]:
    """Return random values for the fields that the cases of both decode kernels share. Some sequences have no tokens,
    or fewer tokens than queries."""
    lengths = tuple(draw.size(200, least=0) for _ in range(draw.size(4)))
    layout = draw.choice(("slots", "slots", "ring", "positions"))
    queries = draw.size(8) if draw.chance() else 1
    window = draw.size(60) if layout != "ring" and draw.chance(0.4) else 0
    if layout == "ring":  # a ring of `window` slots keeps what the window of its last query needs
        queries, window = 1, draw.size(60)
    return {
        "lengths": lengths,
        "queries": queries,
        "page": draw.size(20) if layout == "slots" and draw.chance() else 0,
        "layout": layout,
        "window": window,
        "storage": draw.choice(("", "", *QUANTISED)),
        "splits": draw.size(6, least=0),
    }


def case_cache(
    random: Random, lengths: Sequence[int], capacity: int, page: int, layout: str, queries: int, window: int = 0
) -> tuple[CaseCache, Inputs]:
    """Return a cache for a case, and the arguments that describe it.

    With `layout` "slots", tokens are stored in order. With "ring", they are stored in a ring of `window` slots. With
    "positions", they are in random slots, and some slots are empty. No sequence owns page 0, and unused entries of the
    table point to it.
    """
    batch, device = len(lengths), random.device
    used_lengths = torch.tensor(lengths)
    arguments: Inputs = {"lengths": used_lengths.to(device, torch.int32)}
    if layout == "ring":
        capacity, arguments["ring"] = window, True
    slots = torch.arange(capacity).expand(batch, -1)
    used = slots < used_lengths[:, None]
    if layout == "positions":
        order = torch.stack([random.permutation(capacity).cpu() for _ in lengths])
        used = order < used_lengths[:, None]
        positions = torch.where(used, order, -1)
        ends = used_lengths[:, None] - queries + torch.arange(queries)
        arguments = {"key_positions": positions.to(device), "query_positions": ends.to(device)}
    shape, unused = (batch, capacity), ~used
    if page:
        pages_per_sequence = triton.cdiv(capacity, page)
        needed = [triton.cdiv(length, page) for length in lengths]
        owned = random.permutation(sum(needed) + 1).cpu() + 1
        table = torch.zeros(batch, pages_per_sequence, dtype=torch.int32)
        for row, count in enumerate(needed):
            start = sum(needed[:row])
            table[row, :count] = owned[start : start + count].int()
        shape = (len(owned) + 1, page)
        unused = torch.ones(shape, dtype=torch.bool)
        pages = table.long().gather(1, slots // page)
        unused[pages[used], (slots % page)[used]] = False
        arguments["table"] = table.to(device)
    return CaseCache(random, shape, None if random.shapes_only else unused.to(device), bool(page)), arguments
