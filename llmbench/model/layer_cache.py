"""The cache of one attention layer: a slot for each token, or a ring of slots for a window. paged.py has blocks.

A cache holds sequences of different lengths side by side. Every slot knows the position of the token in it; a negative
position marks an empty slot. Padding is never stored. Latent attention stores one row per token as the key of one head:
the latent, then the rotary key. Its values are an indexer's keys, or have no width.

B batch, K KV heads, S new tokens, T slots, H head dim.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llmbench.model.implementations.interface import Slots
from llmbench.model.storage import RowStorage, Storage


class LayerCache(Protocol):
    """Keys and values of one layer."""

    def fill(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """Store keys and values [B, K, S, H] of tokens at `positions` [B, S]. Where `valid` [B, S] is false, the token
        is padding and is left out."""
        ...

    def overwrites(self, new: int) -> bool:
        """Whether `new` tokens at once overwrite keys that the first of them still sees."""
        ...

    def token_positions(self) -> Tensor:
        """Positions [B, T] of the stored tokens, negative for empty slots."""
        ...

    def gathered_keys(self, dtype: torch.dtype) -> Tensor:
        """Keys [B, K, T, H] of the stored tokens; a copy where rows are quantised or in blocks."""
        ...

    def gathered_values(self, dtype: torch.dtype) -> Tensor:
        """Values [B, K, T, H] of the stored tokens; a copy where rows are quantised or in blocks."""
        ...

    def slots(self, lengths: Tensor) -> Slots:
        """Keys and values as they lie in memory, of sequences of `lengths` [B] tokens."""
        ...

    def forget(self, row: int) -> None:
        """Empty the slots of one sequence."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes allocated for the tokens of all sequences, empty slots and scales included."""
        ...


class RowShape(NamedTuple):
    """What a layer stores for one token: KV heads, and the segments of a key's and of a value's row. A quantised row
    has a scale for each segment."""

    heads: int
    key: tuple[int, ...]
    value: tuple[int, ...]


class SlotCache:
    """Slots for `capacity` tokens of each sequence. With `ring`, a token overwrites the token `capacity` positions
    before it; several new tokens at once then see the tokens stored before them and themselves."""

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
        place = (batch, row.heads, capacity + 1)  # the last slot takes the tokens that are dropped
        self.keys = RowStorage(place, row.key, storage=storage, dtype=dtype, device=device)
        self.values = RowStorage(place, row.value, storage=storage, dtype=dtype, device=device)
        self.positions = torch.full((batch, capacity + 1), -1, dtype=torch.int64, device=device)

    def fill(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """See LayerCache. The last of several tokens for one slot of a ring is stored."""
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
