"""The cache of one attention layer: one slot per token, or a ring of slots for a window. paged.py stores blocks.

The sequences in a cache may have different lengths. Each slot stores the position of its token; an empty slot has a
negative position. Padding is never stored. In latent attention, the cache has one KV head. Its key row is the latent
followed by the rotary key. Its value row is the key of the indexer, or has width 0.

B batch, K KV heads, S new tokens, T slots, H head dim, Hv value head dim.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llmbench.model.implementations.interface import Slots
from llmbench.model.storage import RowStorage, Storage


class LayerCache(Protocol):
    """The interface of a cache of keys and values of one layer."""

    def fill(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """Store keys [B, K, S, H] and values [B, K, S, Hv] of the tokens at `positions` [B, S].

        A token is padding, and is not stored, if `valid` [B, S] is false.
        """
        ...

    def overwrites(self, new: int) -> bool:
        """Whether storing `new` tokens at once overwrites keys that the first of these tokens still sees."""
        ...

    def token_positions(self) -> Tensor:
        """The positions [B, T] of the stored tokens. An empty slot has a negative position."""
        ...

    def gathered_keys(self, dtype: torch.dtype) -> Tensor:
        """The keys [B, K, T, H] of the stored tokens. Quantised or paged rows are copied."""
        ...

    def gathered_values(self, dtype: torch.dtype) -> Tensor:
        """The values [B, K, T, Hv] of the stored tokens. Quantised or paged rows are copied."""
        ...

    def slots(self, lengths: Tensor) -> Slots:
        """The keys and values in place, for sequences of `lengths` [B] tokens."""
        ...

    def forget(self, row: int) -> None:
        """Empty the slots of sequence `row`."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the slots of all sequences, with empty slots and scales."""
        ...


class RowShape(NamedTuple):
    """The shape of one token's rows in a layer: the number of KV heads, and the segments of a key row and of a value
    row.

    A quantised row has one scale per segment.
    """

    heads: int
    key: tuple[int, ...]
    value: tuple[int, ...]


class SlotCache:
    """A cache with `capacity` slots per sequence.

    With `ring`, a token overwrites the token that is `capacity` positions before it. If several new tokens are stored
    at once, they attend to the older tokens before these are overwritten.
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
        place = (batch, row.heads, capacity + 1)  # one more slot, into which dropped tokens are written
        self.keys = RowStorage(place, row.key, storage=storage, dtype=dtype, device=device)
        self.values = RowStorage(place, row.value, storage=storage, dtype=dtype, device=device)
        self.positions = torch.full((batch, capacity + 1), -1, dtype=torch.int64, device=device)

    def fill(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """See LayerCache. If several tokens belong to the same slot of a ring, the last one is stored."""
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
        """See LayerCache."""
        return self.ring and new > 1

    def token_positions(self) -> Tensor:
        """See LayerCache."""
        return self.positions[:, : self.capacity]

    def gathered_keys(self, dtype: torch.dtype) -> Tensor:
        """See LayerCache."""
        return self.keys.read(self._used, dtype)

    def gathered_values(self, dtype: torch.dtype) -> Tensor:
        """See LayerCache."""
        return self.values.read(self._used, dtype)

    def slots(self, lengths: Tensor) -> Slots:
        """See LayerCache."""
        (keys, key_scales), (values, value_scales) = (rows.stored(self._used) for rows in (self.keys, self.values))
        return Slots(keys, values, key_scales, value_scales, lengths, ring=self.ring)

    @property
    def _used(self) -> tuple[slice, slice, slice]:
        return slice(None), slice(None), slice(0, self.capacity)

    def forget(self, row: int) -> None:
        """See LayerCache."""
        self.positions[row] = -1

    @property
    def nbytes(self) -> int:
        """See LayerCache."""
        batch, heads, slots = self.keys.data.shape[:3]
        return batch * heads * (slots - 1) * (self.keys.row_bytes + self.values.row_bytes)
