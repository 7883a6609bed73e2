"""What a whole model keeps between steps: the caches of its layers, and how long each sequence is.

B batch, S new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmbench.errors import CannotRunError, unknown
from llmbench.model.cache import LayerCache, RowShape, SlotCache
from llmbench.model.paged import BLOCK_SIZE, BlockPool, BlockTable, PagedCache
from llmbench.model.storage import Storage


class CacheKind(NamedTuple):
    """How layers of attention keep what they keep.

    rolling: windowed layers hold no more than their window. paged: in blocks, every layer at full length, as engines
    without hybrid support do. storage: quantised rows.
    """

    name: str
    rolling: bool = True
    paged: bool = False
    storage: Storage | None = None


CACHE_KINDS: dict[str, CacheKind] = {
    kind.name: kind
    for kind in (
        CacheKind("rolling"),
        CacheKind("dense", rolling=False),
        CacheKind("paged", rolling=False, paged=True),
        CacheKind("int8", storage="int8"),
        CacheKind("fp8", storage="fp8"),
        CacheKind("paged-int8", rolling=False, paged=True, storage="int8"),
        CacheKind("paged-fp8", rolling=False, paged=True, storage="fp8"),
    )
}
"""Every way to keep keys and values, by name. Latent attention keeps latents in each of them."""


def cache_kind(name: str) -> CacheKind:
    """The kind of that name. Raises UnknownNameError with the nearest."""
    if name not in CACHE_KINDS:
        raise unknown("kind of cache", name, CACHE_KINDS)
    return CACHE_KINDS[name]


class Store(NamedTuple):
    """What a mixer's state is made with: its kind, room for `capacity` tokens of `batch` sequences, and the table where
    the kind is paged."""

    kind: CacheKind
    batch: int
    capacity: int
    dtype: torch.dtype
    device: torch.device | str
    table: BlockTable | None = None

    def rows(self, shape: RowShape, span: int | None) -> LayerCache:
        """The cache of a layer that sees the last `span` tokens, or all."""
        where: dict[str, Any] = {"dtype": self.dtype, "device": self.device, "storage": self.kind.storage}
        if self.table is not None:
            return PagedCache(self.table, shape, **where)
        ring = self.kind.rolling and span is not None and span < self.capacity
        slots = span if ring and span is not None else self.capacity
        return SlotCache(self.batch, slots, shape, ring=ring, **where)


class Cache:
    """The caches of all layers, and how long each sequence is: on the device `lengths` [B], on the host `held`."""

    def __init__(self, layers: Sequence[dict[str, Any]], store: Store) -> None:
        self.layers = list(layers)
        self.store = store
        self.lengths = torch.zeros(store.batch, dtype=torch.int64, device=store.device)
        self.held = [0] * store.batch

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.held)

    def reserve(self, length: int, lengths: Tensor | None) -> int:
        """Room for a forward pass of `length` tokens, or `lengths` [B] of them; the longest sequence after it.

        Raises CannotRunError where there is none.
        """
        after = self._after(length, lengths)
        if max(after) > self.store.capacity:
            raise CannotRunError(
                f"the cache has room for {self.store.capacity} tokens a sequence, not {max(after)}",
                hint="give it a larger capacity",
            )
        if self.store.table is not None:
            self.store.table.reserve(after)
        return max(after)

    def advance(self, length: int, lengths: Tensor | None) -> None:
        """Take note of the tokens that a forward pass put in."""
        self.held = self._after(length, lengths)
        self.lengths = self.lengths + (length if lengths is None else lengths)

    def _after(self, length: int, lengths: Tensor | None) -> list[int]:
        new = [length] * len(self.held) if lengths is None else lengths.tolist()
        return [held + count for held, count in zip(self.held, new, strict=True)]

    def forget(self, row: int) -> None:
        """Empty one sequence's place, for another to start there; its blocks go back to the pool."""
        for layer in self.layers:
            for state in layer.values():
                state.forget(row)
        if self.store.table is not None:
            self.store.table.release(row)
        self.held[row] = 0
        self.lengths = self.lengths.index_fill(0, torch.tensor([row], device=self.lengths.device), 0)

    @property
    def nbytes(self) -> int:
        """Bytes set aside for tokens and states, in all layers."""
        return sum(state.nbytes for layer in self.layers for state in layer.values())


def open_store(
    kind: str,
    batch: int,
    capacity: int,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    block_size: int = BLOCK_SIZE,
    num_blocks: int | None = None,
) -> Store:
    """A store of that kind. A paged one has `num_blocks` blocks for all sequences together, or enough for `capacity` of
    each."""
    chosen = cache_kind(kind)
    table = None
    if chosen.paged:
        most = -(-capacity // block_size)
        pool = BlockPool(batch * most if num_blocks is None else num_blocks)
        table = BlockTable(batch, most, pool, block_size=block_size, device=device)
    return Store(chosen, batch, capacity, dtype, device, table)
