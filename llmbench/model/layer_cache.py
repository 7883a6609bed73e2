"""The cache of one attention layer, in slots. paged.py has caches in blocks.

A cache has one slot per token. If the layer has a sliding window, the slots can form a ring, in which a new token
overwrites an old one. The sequences in a cache may have different lengths. Each slot stores the position of its token.
An empty slot has a negative position. Padding is never stored.

In latent attention, the cache has one KV head. The key row of a token is the latent followed by the rotary key. The
value row is the key of the indexer. Without an indexer, the value row has width 0.

Dimensions: B batch, K KV heads, S new tokens, T slots, H head dim, Hv value head dim.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llmbench.model.implementations.interface import Slots
from llmbench.model.storage import RowStorage, Storage


class LayerCache(Protocol):
    """The interface of a cache that stores the keys and values of one layer."""

    def fill(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """Store keys k [B, K, S, H] and values v [B, K, S, Hv] of the tokens at `positions` [B, S].

        - `valid` [B, S]: false for padding, which is not stored. None: no token is padding.
        """
        ...

    def overwrites(self, new: int) -> bool:
        """Return whether storing `new` tokens at once overwrites keys that the first of these tokens still sees."""
        ...

    def token_positions(self) -> Tensor:
        """Return the positions [B, T] of the stored tokens. An empty slot has a negative position."""
        ...

    def gathered_keys(self, dtype: torch.dtype) -> Tensor:
        """Return the keys [B, K, T, H] of the stored tokens. Quantised or paged rows are copied."""
        ...

    def gathered_values(self, dtype: torch.dtype) -> Tensor:
        """Return the values [B, K, T, Hv] of the stored tokens. Quantised or paged rows are copied."""
        ...

    def slots(self, lengths: Tensor) -> Slots:
        """Return the keys and values at their place in memory, for sequences of `lengths` [B] tokens."""
        ...

    def forget(self, row: int) -> None:
        """Empty the slots of the sequence with the index `row`."""
        ...

    @property
    def nbytes(self) -> int:
        """The bytes of the slots of all sequences. Empty slots and the scales of quantised rows count."""
        ...


class RowShape(NamedTuple):
    """The shape of the rows that a layer stores for one token.

    - `heads`: the number of KV heads.
    - `key`, `value`: the widths of the segments of a key row and of a value row. A quantised row has one scale per
      segment.
    """

    heads: int
    key: tuple[int, ...]
    value: tuple[int, ...]


class SlotCache:
    """A cache with `capacity` slots per sequence.

    With `ring`, a token overwrites the token that is `capacity` positions before it. If a forward pass adds several
    tokens, they attend to the old tokens first, and then overwrite old tokens. Each sequence also has one more slot.
    Tokens that need not be stored are written to this slot: padding, and tokens that a later token of the same pass
    would overwrite.
    """

    def __init__(
        self,
        batch: int,
        capacity: int,
        row: RowShape,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        ring: bool = False,
        storage: Storage | None = None,
    ) -> None:
        self.ring, self.capacity = ring, capacity
        place = (batch, row.heads, capacity + 1)  # one more slot, for tokens that need not be stored
        self.keys = RowStorage(place, row.key, storage=storage, dtype=dtype, device=device)
        self.values = RowStorage(place, row.value, storage=storage, dtype=dtype, device=device)
        self.positions = torch.full((batch, capacity + 1), -1, dtype=torch.int64, device=device)

    def fill(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """Store keys and values, as LayerCache.fill says.

        If several tokens belong to one slot of a ring, the last of these tokens is stored.
        """
        new = positions if valid is None else positions.masked_fill(~valid, -1)
        stored = new >= 0
        if self.ring:
            stored = stored & (new > new.amax(dim=1, keepdim=True) - self.capacity)
        slots = torch.where(stored, new % self.capacity, self.capacity)
        rows = torch.arange(slots.shape[0], device=slots.device)[:, None]
        self.keys.write((rows, slice(None), slots), k.transpose(1, 2))
        self.values.write((rows, slice(None), slots), v.transpose(1, 2))
        self.positions[rows, slots] = new

    def overwrites(self, new: int) -> bool:
        """Return whether the cache is a ring and gets several tokens at once."""
        return self.ring and new > 1

    def token_positions(self) -> Tensor:
        """Return the positions [B, T] of the stored tokens. An empty slot has a negative position."""
        return self.positions[:, : self.capacity]

    def gathered_keys(self, dtype: torch.dtype) -> Tensor:
        """Return the keys [B, K, T, H] of all slots. Quantised rows are converted to `dtype`."""
        return self.keys.read(self._used, dtype)

    def gathered_values(self, dtype: torch.dtype) -> Tensor:
        """Return the values [B, K, T, Hv] of all slots. Quantised rows are converted to `dtype`."""
        return self.values.read(self._used, dtype)

    def slots(self, lengths: Tensor) -> Slots:
        """Return the keys and values at their place in memory, for sequences of `lengths` [B] tokens."""
        (keys, key_scales), (values, value_scales) = (rows.stored(self._used) for rows in (self.keys, self.values))
        return Slots(keys, values, key_scales, value_scales, lengths, ring=self.ring)

    @property
    def _used(self) -> tuple[slice, slice, slice]:
        return slice(None), slice(None), slice(0, self.capacity)

    def forget(self, row: int) -> None:
        """Empty the slots of the sequence with the index `row`."""
        self.positions[row] = -1

    @property
    def nbytes(self) -> int:
        """The bytes of the slots of all sequences. The slot for tokens that need not be stored does not count."""
        batch, heads, slots = self.keys.data.shape[:3]
        return batch * heads * (slots - 1) * (self.keys.row_bytes + self.values.row_bytes)
