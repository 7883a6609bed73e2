"""The cache of a whole model: the caches and states of its layers, and the length of each sequence.

Dimensions: B batch size, S new tokens.
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
    """A kind of cache. It says how attention layers store keys and values.

    - `rolling`: a layer with a sliding window stores only the tokens in its window.
    - `paged`: every layer stores all tokens in blocks. Serving engines without support for hybrid models do the same.
    - `storage`: the number format of quantised rows. None: rows have the number format of the model.
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
"""Every kind of cache, by name. Every kind stores the latent vectors of latent attention (MLA), not its keys and
values."""


def cache_kind(name: str) -> CacheKind:
    """Return the kind of cache with this name. Raises UnknownNameError, which suggests the nearest name."""
    if name not in CACHE_KINDS:
        raise unknown("kind of cache", name, CACHE_KINDS)
    return CACHE_KINDS[name]


class Store(NamedTuple):
    """The settings from which the cache of each layer is created.

    - `batch`: the number of sequences.
    - `capacity`: the most tokens per sequence.
    - `table`: the block table of a paged cache. None for other kinds.
    """

    kind: CacheKind
    batch: int
    capacity: int
    dtype: torch.dtype
    device: torch.device | str
    table: BlockTable | None = None

    def rows(self, row: RowShape, span: int | None) -> LayerCache:
        """Create an empty cache for one attention layer.

        - `span`: the most keys that one query can see. None: no bound.
        """
        options: dict[str, Any] = {"dtype": self.dtype, "device": self.device, "storage": self.kind.storage}
        if self.table is not None:
            return PagedCache(self.table, row, **options)
        ring = self.kind.rolling and span is not None and span < self.capacity
        slots = span if ring and span is not None else self.capacity
        return SlotCache(self.batch, slots, row, ring=ring, **options)


class Cache:
    """The caches and states of all layers, and the length of each sequence.

    - `lengths` [B]: the number of cached tokens per sequence, as a tensor on the device.
    - `host_lengths`: the same numbers as a Python list. Reading this list does not wait for the device.
    """

    def __init__(self, layers: Sequence[dict[str, Any]], store: Store) -> None:
        self.layers = list(layers)
        self.store = store
        self.lengths = torch.zeros(store.batch, dtype=torch.int64, device=store.device)
        self.host_lengths = [0] * store.batch

    @property
    def longest(self) -> int:
        """The number of tokens in the longest sequence."""
        return max(self.host_lengths)

    def reserve(self, length: int, lengths: Tensor | None) -> int:
        """Reserve room for the tokens of a forward pass, and return the length of the longest sequence after the pass.

        - `length`: the number of tokens per row, including padding.
        - `lengths` [B]: the number of real tokens in each row. None: no row has padding.

        Raises CannotRunError if the cache has too little room.
        """
        after = self._after(length, lengths)
        if max(after) > self.store.capacity:
            raise CannotRunError(
                f"the cache has room for {self.store.capacity} tokens per sequence, but {max(after)} are needed",
                hint="create the cache with a larger capacity",
            )
        if self.store.table is not None:
            self.store.table.reserve(after)
        return max(after)

    def advance(self, length: int, lengths: Tensor | None) -> None:
        """Increase the length of each sequence by the number of tokens that a forward pass stored."""
        self.host_lengths = self._after(length, lengths)
        self.lengths = self.lengths + (length if lengths is None else lengths)

    def _after(self, length: int, lengths: Tensor | None) -> list[int]:
        new = [length] * len(self.host_lengths) if lengths is None else lengths.tolist()
        return [old + more for old, more in zip(self.host_lengths, new, strict=True)]

    def forget(self, row: int) -> None:
        """Empty the slots of one sequence, so that another sequence can use them.

        A paged cache returns the blocks to its pool.
        """
        for layer in self.layers:
            for state in layer.values():
                state.forget(row)
        if self.store.table is not None:
            self.store.table.release(row)
        self.host_lengths[row] = 0
        self.lengths = self.lengths.index_fill(0, torch.tensor([row], device=self.lengths.device), 0)

    @property
    def nbytes(self) -> int:
        """The bytes that all layers allocated for tokens and states."""
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
    """Return the settings for a new cache of this kind. Raises UnknownNameError for an unknown kind.

    A paged cache has `num_blocks` blocks for all sequences together. By default, the blocks suffice for `capacity`
    tokens of every sequence.
    """
    settings = cache_kind(kind)
    table = None
    if settings.paged:
        max_blocks = -(-capacity // block_size)
        pool = BlockPool(batch * max_blocks if num_blocks is None else num_blocks)
        table = BlockTable(batch, max_blocks, pool, block_size=block_size, device=device)
    return Store(settings, batch, capacity, dtype, device, table)
