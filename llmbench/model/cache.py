"""What a model keeps between steps, layer by layer.

A cache holds sequences of different lengths side by side: every slot knows the position of the token in it, and a
negative position is an empty slot. Padding is never written.

B batch, K KV heads, T slots, H head dim.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class LayerCache(Protocol):
    """Keys and values of one layer."""

    def update(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Put in new keys and values [B, K, S, H] of tokens at `positions` [B, S]; all that is held, with positions
        [B, T]. Where `valid` [B, S] is false the token is padding and is left out."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of what is held, empty slots included."""
        ...


class SlotCache:
    """Slots for `capacity` tokens. With `window`, a ring of that many: a token overwrites the one that left the window,
    and a prefill sees its own keys beside those held."""

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        capacity: int,
        head_dim: int,
        value_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        ring: bool = False,
    ) -> None:
        self.ring = ring
        self.capacity = capacity
        self.keys = torch.zeros(batch, kv_heads, capacity, head_dim, dtype=dtype, device=device)
        self.values = torch.zeros(batch, kv_heads, capacity, value_dim, dtype=dtype, device=device)
        self.positions = torch.full((batch, capacity), -1, dtype=torch.int64, device=device)

    def update(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """See LayerCache."""
        new = positions if valid is None else positions.masked_fill(~valid, -1)
        seen = (k, v, new)
        if self.ring and k.shape[2] > 1:  # some of the new keys are overwritten before the last of them is seen
            seen = (
                torch.cat((self.keys, k), dim=2),
                torch.cat((self.values, v), dim=2),
                torch.cat((self.positions, new), dim=1),
            )
        self._write(k, v, new)
        if self.ring and k.shape[2] > 1:
            return seen
        return self.keys, self.values, self.positions

    def _write(self, k: Tensor, v: Tensor, new: Tensor) -> None:
        """Each token into its slot; padding, and what a ring would overwrite in the same step, nowhere."""
        last = new.amax(dim=1, keepdim=True)
        kept = new >= 0
        if self.ring:
            kept = kept & (new > last - self.capacity)
        slots = torch.where(kept, new % self.capacity, self.capacity)  # one slot past the end takes what is dropped
        batch, heads, _, width = k.shape
        index = slots[:, None, :, None]
        self.keys = _scattered(self.keys, k, index.expand(batch, heads, -1, width))
        self.values = _scattered(self.values, v, index.expand(batch, heads, -1, v.shape[-1]))
        padded = torch.cat((self.positions, self.positions[:, :1]), dim=1).scatter(1, slots, new)
        self.positions = padded[:, :-1]

    @property
    def nbytes(self) -> int:
        """See LayerCache."""
        return self.keys.nbytes + self.values.nbytes


def _scattered(held: Tensor, new: Tensor, index: Tensor) -> Tensor:
    room = torch.cat((held, held[:, :, :1]), dim=2)
    return room.scatter(2, index, new.to(held.dtype))[:, :, :-1]
