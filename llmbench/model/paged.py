"""The cache of one attention layer in blocks: sequences take blocks from a pool as they grow, and return them.

The layout is that of serving engines. Each layer has a pool [blocks, block size, K, H] of keys and one of values. One
table [B, blocks per sequence] of int32, shared by all layers, says where the tokens of a sequence are. Block 0 belongs
to no sequence: padding is written there, and table entries without a block point to it.

B batch, K KV heads, S new tokens, H head dim, M blocks of the longest sequence, T = M · block size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llmbench.errors import CannotRunError
from llmbench.model.implementations.interface import Slots
from llmbench.model.layer_cache import RowShape
from llmbench.model.storage import RowStorage, Storage

BLOCK_SIZE = 16
"""Tokens per block: the default of serving engines."""


class BlockPool:
    """The free blocks. The block returned last is taken first."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.unused = list(range(num_blocks, 0, -1))

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks. Raises CannotRunError where fewer are free."""
        if count > len(self.unused):
            raise CannotRunError(
                f"the cache is full: {count} blocks are needed, {len(self.unused)} of {self.num_blocks} are free",
                hint="use more blocks, or fewer or shorter sequences",
            )
        return [self.unused.pop() for _ in range(count)]

    def free(self, blocks: Sequence[int]) -> None:
        """Return blocks to the pool."""
        assert not set(blocks) & set(self.unused)
        self.unused.extend(blocks)


class BlockTable:
    """The blocks of each sequence, in the order of its tokens."""

    def __init__(
        self, batch: int, max_blocks: int, pool: BlockPool, *, block_size: int, device: torch.device | str
    ) -> None:
        self.pool, self.block_size = pool, block_size
        self.owned: list[list[int]] = [[] for _ in range(batch)]
        self.table = torch.zeros(batch, max_blocks, dtype=torch.int32, device=device)

    def reserve(self, lengths: Sequence[int]) -> None:
        """Take the blocks that sequences of these lengths still lack. Raises CannotRunError, and then takes none."""
        missing = [-(-length // self.block_size) - len(own) for length, own in zip(lengths, self.owned, strict=True)]
        blocks = self.pool.allocate(sum(count for count in missing if count > 0))
        for row, count in enumerate(missing):
            if count > 0:
                start = len(self.owned[row])
                new, blocks = blocks[:count], blocks[count:]
                self.owned[row] += new
                self.table[row, start : start + count] = torch.tensor(new, dtype=torch.int32)

    def release(self, row: int) -> None:
        """Return the blocks of one sequence."""
        self.pool.free(self.owned[row])
        self.owned[row] = []
        self.table[row] = 0

    @property
    def used(self) -> Tensor:
        """The columns of the table that any sequence uses, [B, M]."""
        return self.table[:, : max(len(own) for own in self.owned)]

    @property
    def num_used(self) -> int:
        """Blocks in use by sequences."""
        return sum(len(own) for own in self.owned)


class PagedCache:
    """Keys and values of one layer in blocks. The model's Cache owns the table and grows it before the forward pass."""

    def __init__(
        self,
        table: BlockTable,
        row: RowShape,
        *,
        dtype: torch.dtype,
        device: torch.device | str,
        storage: Storage | None = None,
    ) -> None:
        self.table = table
        place = (table.pool.num_blocks + 1, table.block_size, row.heads)
        self.keys = RowStorage(place, row.key, storage=storage, dtype=dtype, device=device)
        self.values = RowStorage(place, row.value, storage=storage, dtype=dtype, device=device)
        self.lengths = torch.zeros(table.table.shape[0], dtype=torch.int64, device=device)

    def fill(self, k: Tensor, v: Tensor, positions: Tensor, valid: Tensor | None) -> None:
        """See LayerCache."""
        size = self.table.block_size
        new = positions if valid is None else positions.masked_fill(~valid, -1)
        at = new.clamp(min=0)
        # The positions of padding may be past the end of the table.
        blocks = self.table.table.gather(1, (at // size).clamp(max=self.table.table.shape[1] - 1))
        blocks = torch.where(new >= 0, blocks, 0).to(torch.int64)
        self.keys.write((blocks, at % size), k.transpose(1, 2))
        self.values.write((blocks, at % size), v.transpose(1, 2))
        self.lengths = torch.maximum(self.lengths, new.amax(dim=1) + 1)

    def overwrites(self, new: int) -> bool:
        """See LayerCache."""
        return False

    def token_positions(self) -> Tensor:
        """See LayerCache. A block may hold any numbers past the end of its sequence: no query sees them."""
        slots = torch.arange(self.table.used.shape[1] * self.table.block_size, device=self.lengths.device)
        return torch.where(slots < self.lengths[:, None], slots, -1)

    def gathered_keys(self, dtype: torch.dtype) -> Tensor:
        """See LayerCache."""
        return self._gathered(self.keys, dtype)

    def gathered_values(self, dtype: torch.dtype) -> Tensor:
        """See LayerCache."""
        return self._gathered(self.values, dtype)

    def _gathered(self, rows: RowStorage, dtype: torch.dtype) -> Tensor:
        """[B, K, T, H]. Empty slots become zero, because a weight of zero does not undo a NaN."""
        empty = self.token_positions() < 0
        tokens = rows.read(self.table.used.to(torch.int64), dtype).flatten(1, 2)
        return tokens.masked_fill(empty[..., None, None], 0.0).transpose(1, 2)

    def slots(self, lengths: Tensor) -> Slots:
        """See LayerCache."""
        (keys, key_scales), (values, value_scales) = (rows.stored(...) for rows in (self.keys, self.values))
        return Slots(keys, values, key_scales, value_scales, lengths, table=self.table.used)

    def forget(self, row: int) -> None:
        """See LayerCache. The table returns the blocks."""
        self.lengths[row] = 0

    @property
    def nbytes(self) -> int:
        """See LayerCache. Only blocks in use count."""
        heads = self.keys.data.shape[2]
        return self.table.num_used * self.table.block_size * heads * (self.keys.row_bytes + self.values.row_bytes)
