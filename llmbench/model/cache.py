"""What attention keeps between steps, layer by layer: dense slots, rings of a window; `paged` has blocks.

A cache holds sequences of different lengths side by side: every slot knows the position of the token in it, and a
negative position is an empty slot. Padding is never kept. Latent attention keeps one row a token, the latent and then
the rotated key, as keys of one head; its values are an indexer's keys, or of no width.

B batch, K KV heads, S new tokens, T slots, H head dim.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llmbench.model.implementations.interface import Mask, Slots
from llmbench.model.storage import Rows, Storage


class LayerCache(Protocol):
    """Keys and values of one layer."""

    def fill(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """Put in keys and values [B, K, S, H] of tokens at `positions` [B, S]. Where `valid` [B, S] is false the token
        is padding and is left out."""
        ...

    def overwrites(self, new: int) -> bool:
        """Whether so many new tokens at once overwrite what the first of them still sees."""
        ...

    def token_positions(self) -> Tensor:
        """Positions [B, T] of the tokens held, negative for empty slots."""
        ...

    def gathered_keys(self, dtype: torch.dtype) -> Tensor:
        """Keys [B, K, T, H] of the tokens held, a copy where rows are quantised or in blocks."""
        ...

    def gathered_values(self, dtype: torch.dtype) -> Tensor:
        """Their values [B, K, T, H]."""
        ...

    def slots(self, lengths: Tensor) -> Slots:
        """Keys and values where they lie, of sequences of `lengths` [B]."""
        ...

    def forget(self, row: int) -> None:
        """Empty the slots of one sequence."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes set aside for the tokens of all sequences, empty slots and scales included."""
        ...


class Held:
    """Keys and values that a cache holds, as a Seen: gathered when they are asked for."""

    def __init__(self, cache: LayerCache, mask: Mask, lengths: Tensor, dtype: torch.dtype) -> None:
        self.cache, self.mask, self.lengths, self.dtype = cache, mask, lengths, dtype

    @property
    def k(self) -> Tensor:
        """Keys [B, K, T, H]."""
        return self.cache.gathered_keys(self.dtype)

    @property
    def v(self) -> Tensor:
        """Values [B, K, T, H]."""
        return self.cache.gathered_values(self.dtype)

    @property
    def slots(self) -> Slots:
        """Where they lie."""
        return self.cache.slots(self.lengths)


class RowShape(NamedTuple):
    """What one token leaves in a layer: heads, and the parts of a key's and a value's row, each with a scale of its own
    where rows are quantised."""

    heads: int
    key: tuple[int, ...]
    value: tuple[int, ...]


class SlotCache:
    """Slots for `capacity` tokens a sequence. With `ring`, a token overwrites the one `capacity` before it, and several
    tokens at once see what was held before beside their own."""

    def __init__(
        self,
        batch: int,
        capacity: int,
        shape: RowShape,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        ring: bool = False,
        storage: Storage | None = None,
    ) -> None:
        self.ring, self.capacity = ring, capacity
        place = (batch, shape.heads, capacity + 1)  # the last slot takes what is dropped
        self.keys = Rows(place, shape.key, storage=storage, dtype=dtype, device=device)
        self.values = Rows(place, shape.value, storage=storage, dtype=dtype, device=device)
        self.positions = torch.full((batch, capacity + 1), -1, dtype=torch.int64, device=device)

    def fill(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """See LayerCache. Of several tokens for one slot of a ring the last is kept."""
        new = positions if valid is None else positions.masked_fill(~valid, -1)
        kept = new >= 0
        if self.ring:
            kept = kept & (new > new.amax(dim=1, keepdim=True) - self.capacity)
        slots = torch.where(kept, new % self.capacity, self.capacity)
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
