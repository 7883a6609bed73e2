"""Caches of tokens as the decode kernels are given them: where rows are, what they hold, and who may see it.

Plain torch: arguments and their checks, the reference's mask and gather, counts of pairs, and caches for cases. See
`decoding` for the meaning of lengths, table, positions, ring, window and chunk.

B batch, S queries of a sequence, T slots, K KV heads, N query heads, W width of a row, M pages of a sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from llmbench.errors import CannotRunError
from llmbench.kernels.kernel import Inputs, Random
from llmbench.kernels.launching import architecture

__all__ = [
    "Held",
    "Places",
    "Slots",
    "allowed",
    "caches",
    "gathered",
    "held_positions",
    "in_order",
    "masked_softmax",
    "pairs_of",
    "row_type",
    "seen",
    "span",
]


class Places(NamedTuple):
    """Strides in elements of rows in a cache: of a sequence or page, a head, a slot."""

    outer: int
    head: int
    slot: int

    @classmethod
    def of(cls, rows: Tensor, paged: bool) -> Places:
        """Of rows [B, K, T, ...], or [pages, page, K, ...]."""
        outer, one, two = rows.stride()[:3]
        return cls(outer, two, one) if paged else cls(outer, one, two)


def in_order(values: Tensor | None) -> Tensor | None:
    """Contiguous; integers and sinks are small."""
    return None if values is None else values.contiguous()


def row_type(rows: Tensor, scaled: bool, like: Tensor) -> None:
    """Raise ValueError where a cache's rows are neither in the queries' dtype nor quantised with scales; CannotRunError
    where the GPU has no instructions for them."""
    if scaled != (rows.dtype in (torch.int8, torch.float8_e4m3fn)):
        raise ValueError(f"a cache of {rows.dtype} {'has no' if scaled else 'needs'} scales")
    if not scaled and rows.dtype != like.dtype:
        raise ValueError(f"queries are {like.dtype}, the cache {rows.dtype}")
    if rows.dtype == torch.float8_e4m3fn and architecture(rows.device) < 89:
        raise CannotRunError("fp8 rows need compute capability 8.9", hint="int8 rows run on every GPU")


class Held(NamedTuple):
    """Which tokens a cache holds and where, as the ops take it: lengths [B], table [B, M], positions [B, T], [B, S]."""

    lengths: Tensor | None = None
    table: Tensor | None = None
    key_positions: Tensor | None = None
    query_positions: Tensor | None = None
    ring: bool = False
    causal: bool = True
    window: int | None = None
    chunk: int | None = None

    def checked(self, batch: int, tokens: int, capacity: int) -> Held:
        """These, contiguous. Raises ValueError where they do not fit together."""
        for name, values, shape in (
            ("lengths", self.lengths, (batch,)),
            ("key_positions", self.key_positions, (batch, capacity)),
            ("query_positions", self.query_positions, (batch, tokens)),
        ):
            if values is not None and tuple(values.shape) != shape:
                raise ValueError(f"{name} {tuple(values.shape)} should be {shape}")
        if self.table is not None and (self.table.dim() != 2 or self.table.shape[0] != batch):
            raise ValueError(f"table {tuple(self.table.shape)} should be ({batch}, pages)")
        if self.table is not None and self.table.stride(-1) != 1:
            raise ValueError("table rows have gaps")
        if self.lengths is None and self.key_positions is None and self.causal and self.query_positions is None:
            raise ValueError("nothing says where the queries are: give lengths or query_positions")
        if self.lengths is None and self.query_positions is None and self.causal:
            raise ValueError("key_positions without lengths need query_positions")
        if self.window is not None and (self.window < 1 or not self.causal):
            raise ValueError(f"a window of {self.window} needs causal queries and at least one key")
        if self.chunk is not None and (self.chunk < 1 or not self.causal):
            raise ValueError(f"a chunk of {self.chunk} needs causal queries and at least one key")
        if self.ring:
            if self.lengths is None or self.table is not None or self.key_positions is not None:
                raise ValueError("a ring needs lengths, and neither table nor key_positions")
            if self.window is None or capacity < self.window + tokens - 1:
                raise ValueError(f"a ring of {capacity} slots has lost keys that {tokens} queries should see")
        return self._replace(
            lengths=in_order(self.lengths),
            key_positions=in_order(self.key_positions),
            query_positions=in_order(self.query_positions),
        )

    @property
    def by_slot(self) -> bool:
        """Whether a slot's number is its token's position."""
        return not self.ring and self.key_positions is None


def span(held: Held, tokens: int, capacity: int) -> int:
    """Slots that a program may have to read, from shapes."""
    within = [limit for limit in (held.window, held.chunk) if limit is not None]
    if not within or not held.by_slot:
        return capacity
    return min(capacity, min(within) + tokens - 1)


def held_positions(held: Held, batch: int, capacity: int, device: torch.device) -> Tensor:
    """Positions of the tokens in all slots [B, T], negative where there is none, in plain torch."""
    slots = torch.arange(capacity, device=device).expand(batch, -1)
    lengths = held.lengths
    if held.key_positions is not None:
        positions = held.key_positions.long()
    elif held.ring:
        assert lengths is not None
        positions = lengths[:, None] - 1 - (lengths[:, None] - 1 - slots) % capacity
    else:
        positions = slots
    return positions if lengths is None else torch.where(slots < lengths[:, None], positions, -1)


def allowed(held: Held, tokens: int, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Which keys at `positions` [B, T] each query sees [B, S, T], and the queries' positions [B, S], in plain torch."""
    if held.query_positions is not None:
        queries = held.query_positions.long()
    elif held.lengths is not None:
        queries = held.lengths[:, None].long() - tokens + torch.arange(tokens, device=positions.device)
    else:
        queries = torch.zeros(positions.shape[0], tokens, dtype=torch.int64, device=positions.device)
    query, key = queries[:, :, None], positions[:, None, :]
    pairs = (key >= 0).expand(-1, tokens, -1)
    if held.causal:
        pairs = pairs & (key <= query)
    if held.window is not None:
        pairs = pairs & (key > query - held.window)
    if held.chunk is not None:
        pairs = pairs & (key >= query - query % held.chunk)
    return pairs, queries


def seen(
    lengths: Sequence[int], tokens: int, window: int | None, chunk: int | None, *, causal: bool = True
) -> tuple[int, int]:
    """(pairs of all queries, different keys that some query sees), where `tokens` queries end each sequence."""
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


def pairs_of(held: Held, batch: int, tokens: int, capacity: int) -> int:
    """Pairs of one head that are seen. Fake tensors have no lengths: then all slots are taken to be in use."""
    sources = [each for each in held[:4] if isinstance(each, Tensor) and each is not held.table]
    if any(isinstance(each, FakeTensor) or each.is_meta for each in sources):
        return seen([capacity] * batch, tokens, held.window, held.chunk, causal=held.causal)[0]
    device = sources[0].device if sources else torch.device("cpu")
    pairs, _ = allowed(held, tokens, held_positions(held, batch, capacity, device))
    return int(pairs.sum())


def gathered(
    rows: Tensor, scales: Tensor | None, table: Tensor | None, positions: Tensor, dtype: torch.dtype
) -> Tensor:
    """[B, K, T, W] of `dtype` in plain torch, zero where `positions` [B, T] say that nothing is held."""
    if scales is not None:
        wide = torch.promote_types(dtype, torch.float32)
        rows = (rows.to(wide) * scales[..., None]).to(dtype)
    if table is not None:
        rows = rows[table.long()].flatten(1, 2).transpose(1, 2)
    return rows.masked_fill((positions < 0)[:, None, :, None], 0.0)


def masked_softmax(scores: Tensor, pairs: Tensor, sinks: Tensor | None = None) -> Tensor:
    """Weights [B, N, S, T] of `pairs` [B, S, T] in plain torch, in fp32 or wider; 0 in rows that see nothing."""
    scores = scores.masked_fill(~pairs[:, None], -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat((scores, column), dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return weights[..., : pairs.shape[-1]].masked_fill(~pairs[:, None], 0.0)


class Slots(NamedTuple):
    """The places of a case's cache: `shape` (B, T) or (pages, page) of its rows, and which of them are `unused`."""

    random: Random
    shape: tuple[int, int]
    unused: Tensor | None
    paged: bool

    def rows(self, heads: int, width: int, storage: str = "") -> tuple[Tensor, Tensor | None]:
        """Random rows [B, K, T, W] or [pages, page, K, W], and scales [.., .., ..] where `storage` quantises them; NaN
        where they are unused (a quantised row has NaN for its scale)."""
        outer, inner = self.shape
        shape = (outer, inner, heads) if self.paged else (outer, heads, inner)
        rows = self.random.normal(*shape, width)
        scales = None
        if storage:
            most, dtype = {"int8": (127.0, torch.int8), "fp8": (448.0, torch.float8_e4m3fn)}[storage]
            scales = self.random.normal(*shape, dtype=torch.float32)
            if self.random.shapes_only:
                return rows.to(dtype), scales
            scales = rows.float().abs().amax(dim=-1) / most
            rows = rows.float() / scales[..., None]
            rows = (rows.round() if storage == "int8" else rows).to(dtype)
        if self.unused is not None:
            unused = self.unused[:, :, None] if self.paged else self.unused[:, None, :]
            if scales is None:
                rows.masked_fill_(unused[..., None], torch.nan)
            else:
                scales.masked_fill_(unused, torch.nan)
        return rows, scales


def caches(
    random: Random, lengths: Sequence[int], capacity: int, page: int, kept: str, queries: int, window: int = 0
) -> tuple[Slots, Inputs]:
    """Places for cases, and the arguments that say what they hold. `kept`: "slots", "ring" of `window` slots, or
    "given" positions in random slots, some empty. Page 0 is nobody's, and unused entries of the table point to it."""
    batch, device = len(lengths), random.device
    held = torch.tensor(lengths)
    found: Inputs = {"lengths": held.to(device, torch.int32)}
    if kept == "ring":
        capacity, found["ring"] = window, True
    slots = torch.arange(capacity).expand(batch, -1)
    used = slots < held[:, None]
    if kept == "given":
        order = torch.stack([random.permutation(capacity).cpu() for _ in lengths])
        used = order < held[:, None]
        positions = torch.where(used, order, -1)
        ends = held[:, None] - queries + torch.arange(queries)
        found = {"key_positions": positions.to(device), "query_positions": ends.to(device)}
    shape, unused = (batch, capacity), ~used
    if page:
        each = triton.cdiv(capacity, page)
        needed = [triton.cdiv(length, page) for length in lengths]
        owned = random.permutation(sum(needed) + 1).cpu() + 1
        table = torch.zeros(batch, each, dtype=torch.int32)
        for row, count in enumerate(needed):
            start = sum(needed[:row])
            table[row, :count] = owned[start : start + count].int()
        shape = (len(owned) + 1, page)
        unused = torch.ones(shape, dtype=torch.bool)
        pages = table.long().gather(1, slots // page)
        unused[pages[used], (slots % page)[used]] = False
        found["table"] = table.to(device)
    return Slots(random, shape, None if random.shapes_only else unused.to(device), bool(page)), found
