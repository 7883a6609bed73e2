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

from llmbench.model.rows import Rows, Storage


class LayerCache(Protocol):
    """Keys and values of one layer."""

    def fill(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """Put in keys and values [B, K, S, H] of tokens at `positions` [B, S]. Where `valid` [B, S] is false the token
        is padding and is left out."""
        ...

    def update(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """`fill`, and all that the new tokens may see, with positions [B, T]."""
        ...

    def forget(self, row: int) -> None:
        """Empty the slots of one sequence."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes set aside for the tokens of all sequences, empty slots and scales included."""
        ...


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

    def update(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """See LayerCache."""
        if not self.ring or k.shape[2] == 1:
            self.fill(k, v, positions, valid)
            return self._held(k.dtype)
        old_k, old_v, old = self._held(k.dtype)  # before new tokens overwrite what the first of them still sees
        # Padding keeps its positions, behind every real token: a padded query that saw nothing would become a NaN.
        seen = (torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2), torch.cat((old, positions), dim=1))
        self.fill(k, v, positions, valid)
        return seen

    def _held(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        index = (slice(None), slice(None), slice(0, self.capacity))
        return self.keys.read(index, dtype), self.values.read(index, dtype), self.positions[:, : self.capacity]

    def forget(self, row: int) -> None:
        """See LayerCache."""
        self.positions[row] = -1

    @property
    def nbytes(self) -> int:
        """See LayerCache."""
        batch, heads, slots = self.keys.data.shape[:3]
        return batch * heads * (slots - 1) * (self.keys.row_bytes + self.values.row_bytes)
