"""A cache in blocks: sequences take them from a pool as they grow and give them back when they end.

The layout is that of serving engines: each layer has a pool [blocks, block size, K, H] of keys and one of values, and
one table [B, blocks a sequence] of int32 says where a sequence's tokens are, the same for all layers. Block 0 belongs
to no sequence: padding is written there, and table entries without a block point to it.

B batch, K KV heads, S new tokens, H head dim, M blocks of the longest sequence, T = M · block size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmbench.errors import CannotRunError
from llmbench.model.cache import RowShape
from llmbench.model.implementations.interface import Slots
from llmbench.model.storage import Rows, Storage

BLOCK_SIZE = 16
"""Tokens a block, as engines have it by default."""


class BlockPool:
    """Which blocks are free; the ones given back last are taken first."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.unused = list(range(num_blocks, 0, -1))

    def allocate(self, count: int) -> list[int]:
        """`count` blocks. Raises CannotRunError where there are not so many."""
        if count > len(self.unused):
            raise CannotRunError(
                f"the cache has no room: {count} blocks are needed, {len(self.unused)} of {self.num_blocks} are free",
                hint="give it more blocks, or fewer or shorter sequences",
            )
        return [self.unused.pop() for _ in range(count)]

    def free(self, blocks: Sequence[int]) -> None:
        """Take blocks back."""
        assert not set(blocks) & set(self.unused)
        self.unused.extend(blocks)


class BlockTable:
    """Which blocks hold the tokens of each sequence, in order."""

    def __init__(
        self, batch: int, max_blocks: int, pool: BlockPool, *, block_size: int, device: torch.device | str
    ) -> None:
        self.pool, self.block_size = pool, block_size
        self.owned: list[list[int]] = [[] for _ in range(batch)]
        self.table = torch.zeros(batch, max_blocks, dtype=torch.int32, device=device)

    def reserve(self, lengths: Sequence[int]) -> None:
        """Blocks for so many tokens of each sequence, beside those it has: all of them, or CannotRunError."""
        wanted = [-(-length // self.block_size) - len(own) for length, own in zip(lengths, self.owned, strict=True)]
        blocks = self.pool.allocate(sum(count for count in wanted if count > 0))
        for row, count in enumerate(wanted):
            if count > 0:
                start = len(self.owned[row])
                taken, blocks = blocks[:count], blocks[count:]
                self.owned[row] += taken
                self.table[row, start : start + count] = torch.tensor(taken, dtype=torch.int32)

    def release(self, row: int) -> None:
        """Give back the blocks of one sequence."""
        self.pool.free(self.owned[row])
        self.owned[row] = []
        self.table[row] = 0

    @property
    def used(self) -> Tensor:
        """The table as far as any sequence needs it, [B, M]."""
        return self.table[:, : max(len(own) for own in self.owned)]

    @property
    def num_used(self) -> int:
        """Blocks that sequences hold."""
        return sum(len(own) for own in self.owned)


class PagedCache:
    """One layer's keys and values in blocks. The table is grown before the forward pass, by who owns it."""

    def __init__(
        self,
        table: BlockTable,
        shape: RowShape,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        storage: Storage | None = None,
    ) -> None:
        self.table = table
        place = (table.pool.num_blocks + 1, table.block_size, shape.heads)
        self.keys = Rows(place, shape.key, storage=storage, dtype=dtype, device=device)
        self.values = Rows(place, shape.value, storage=storage, dtype=dtype, device=device)
        self.lengths = torch.zeros(table.table.shape[0], dtype=torch.int64, device=device)

    def fill(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """See LayerCache."""
        size = self.table.block_size
        new = positions if valid is None else positions.masked_fill(~valid, -1)
        at = new.clamp(min=0)
        # A row of padding stands at positions that may be past the table's end.
        blocks = self.table.table.gather(1, (at // size).clamp(max=self.table.table.shape[1] - 1))
        blocks = torch.where(new >= 0, blocks, 0).to(torch.int64)
        self.keys.write((blocks, at % size), k.transpose(1, 2))
        self.values.write((blocks, at % size), v.transpose(1, 2))
        self.lengths = torch.maximum(self.lengths, new.amax(dim=1) + 1)

    def overwrites(self, new: int) -> bool:
        """See LayerCache."""
        return False

    def token_positions(self) -> Tensor:
        """See LayerCache. What a block holds past its sequence's end is never seen: it may be anything."""
        slots = torch.arange(self.table.used.shape[1] * self.table.block_size, device=self.lengths.device)
        return torch.where(slots < self.lengths[:, None], slots, -1)

    def gathered_keys(self, dtype: torch.dtype) -> Tensor:
        """See LayerCache."""
        return self._gathered(self.keys, dtype)

    def gathered_values(self, dtype: torch.dtype) -> Tensor:
        """See LayerCache."""
        return self._gathered(self.values, dtype)

    def _gathered(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        """[B, K, T, H]; zero where nothing is held, because a weight of zero does not undo a NaN."""
        empty = self.token_positions() < 0
        found = rows.read(self.table.used.to(torch.int64), dtype).flatten(1, 2)
        return found.masked_fill(empty[..., None, None], 0.0).transpose(1, 2)

    def slots(self, lengths: Tensor) -> Slots:
        """See LayerCache."""
        (keys, key_scales), (values, value_scales) = (rows.stored(...) for rows in (self.keys, self.values))
        return Slots(keys, values, key_scales, value_scales, lengths, table=self.table.used)

    def forget(self, row: int) -> None:
        """See LayerCache. The blocks are the table's to give back."""
        self.lengths[row] = 0

    @property
    def nbytes(self) -> int:
        """See LayerCache: of the blocks that sequences hold."""
        heads = self.keys.data.shape[2]
        return self.table.num_used * self.table.block_size * heads * (self.keys.row_bytes + self.values.row_bytes)
