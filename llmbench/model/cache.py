"""The cache of a whole model: the caches and states of its layers, and the length of each sequence.

B batch, S new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmbench.errors import CannotRunError, unknown
from llmbench.model.layer_cache import LayerCache, RowShape, SlotCache
from llmbench.model.paged import BLOCK_SIZE, BlockPool, BlockTable, PagedCache
from llmbench.model.storage import Storage


class CacheKind(NamedTuple):
    """How attention layers store keys and values.

    rolling: windowed layers store no more than their window. paged: in blocks, every layer at full length, like serving
    engines without support for hybrid models. storage: the format of quantised rows.
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
"""Every kind of cache, by name. Latent attention stores latents in each of them."""


def cache_kind(name: str) -> CacheKind:
    """The kind of cache of that name. Raises UnknownNameError with the nearest name."""
    if name not in CACHE_KINDS:
        raise unknown("kind of cache", name, CACHE_KINDS)
    return CACHE_KINDS[name]


class Store(NamedTuple):
    """The settings of a cache: its kind, room for `capacity` tokens of each of `batch` sequences, dtype and device, and
    the block table of a paged kind. Layers are opened with them."""

    kind: CacheKind
    batch: int
    capacity: int
    dtype: torch.dtype
    device: torch.device | str
    table: BlockTable | None = None

    def rows(self, row: RowShape, span: int | None) -> LayerCache:
        """An empty cache of a layer that sees the last `span` tokens; None: all of them."""
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device, "storage": self.kind.storage}
        if self.table is not None:
            return PagedCache(self.table, row, **options)
        ring = self.kind.rolling and span is not None and span < self.capacity
        slots = span if ring and span is not None else self.capacity
        return SlotCache(self.batch, slots, row, ring=ring, **options)


class Cache:
    """The caches of all layers, and the length of each sequence: `lengths` [B] on the device, `host_lengths` on the
    host."""

    def __init__(self, layers: Sequence[dict[str, Any]], store: Store) -> None:
        self.layers = list(layers)
        self.store = store
        self.lengths = torch.zeros(store.batch, dtype=torch.int64, device=store.device)
        self.host_lengths = [0] * store.batch

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.host_lengths)

    def reserve(self, length: int, lengths: Tensor | None) -> int:
        """Make room for a forward pass of `length` tokens, or `lengths` [B] of them, and return the length of the
        longest sequence after it. Raises CannotRunError where there is no room."""
        after = self._after(length, lengths)
        if max(after) > self.store.capacity:
            raise CannotRunError(
                f"the cache has room for {self.store.capacity} tokens per sequence, not {max(after)}",
                hint="create the cache with a larger capacity",
            )
        if self.store.table is not None:
            self.store.table.reserve(after)
        return max(after)

    def advance(self, length: int, lengths: Tensor | None) -> None:
        """Count the tokens that a forward pass stored."""
        self.host_lengths = self._after(length, lengths)
        self.lengths = self.lengths + (length if lengths is None else lengths)

    def _after(self, length: int, lengths: Tensor | None) -> list[int]:
        new = [length] * len(self.host_lengths) if lengths is None else lengths.tolist()
        return [old + more for old, more in zip(self.host_lengths, new, strict=True)]

    def forget(self, row: int) -> None:
        """Empty the place of one sequence, so that another can start there. Its blocks return to the pool."""
        for layer in self.layers:
            for state in layer.values():
                state.forget(row)
        if self.store.table is not None:
            self.store.table.release(row)
        self.host_lengths[row] = 0
        self.lengths = self.lengths.index_fill(0, torch.tensor([row], device=self.lengths.device), 0)

    @property
    def nbytes(self) -> int:
        """Bytes allocated for tokens and states, in all layers."""
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
    """The settings of a cache of that kind. A paged cache has `num_blocks` blocks for all sequences together, by
    default enough for `capacity` tokens of each. Raises UnknownNameError."""
    settings = cache_kind(kind)
    table = None
    if settings.paged:
        max_blocks = -(-capacity // block_size)
        pool = BlockPool(batch * max_blocks if num_blocks is None else num_blocks)
        table = BlockTable(batch, max_blocks, pool, block_size=block_size, device=device)
    return Store(settings, batch, capacity, dtype, device, table)
