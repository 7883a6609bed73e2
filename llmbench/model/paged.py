"""The cache of one attention layer in blocks. A sequence takes blocks from a pool as it grows, and returns them later.

Serving engines use the same layout. Each layer has a tensor [blocks, block size, K, H] of keys and a tensor [blocks,
block size, K, Hv] of values. All layers share one int32 table [B, blocks per sequence], which lists the blocks of each
sequence. Block 0 belongs to no sequence: padding is written to it, and unused table entries point to it.

Dimensions: B batch, K KV heads, S new tokens, H head dim, Hv value head dim, M blocks of the longest sequence, T = M ·
block size.
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
"""Tokens per block. 16 is the default of serving engines."""


class BlockPool:
    """The pool of free blocks. The block that was returned last is allocated first."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.unused = list(range(num_blocks, 0, -1))

    def allocate(self, count: int) -> list[int]:
        """Take `count` free blocks from the pool. Raises CannotRunError if the pool has fewer."""
        if count > len(self.unused):
            raise CannotRunError(
                f"the cache is full: {count} blocks are needed, {len(self.unused)} of {self.num_blocks} are free",
                hint="create the cache with more blocks, or use fewer or shorter sequences",
            )
        return [self.unused.pop() for _ in range(count)]

    def free(self, blocks: Sequence[int]) -> None:
        """Return blocks to the pool."""
        assert not set(blocks) & set(self.unused)
        self.unused.extend(blocks)


class BlockTable:
    """A table that lists the blocks of each sequence, in the order of the tokens of the sequence."""

    def __init__(
        self, batch: int, max_blocks: int, pool: BlockPool, *, block_size: int, device: torch.device | str
    ) -> None:
        self.pool, self.block_size = pool, block_size
        self.owned: list[list[int]] = [[] for _ in range(batch)]
        self.table = torch.zeros(batch, max_blocks, dtype=torch.int32, device=device)

    def reserve(self, lengths: Sequence[int]) -> None:
        """Allocate blocks, so that each sequence has enough blocks for its number of tokens in `lengths`.

        Raises CannotRunError if the pool has too few free blocks. In this case, no sequence gets any block.
        """
        missing = [-(-length // self.block_size) - len(own) for length, own in zip(lengths, self.owned, strict=True)]
        blocks = self.pool.allocate(sum(count for count in missing if count > 0))
        for row, count in enumerate(missing):
            if count > 0:
                start = len(self.owned[row])
                new, blocks = blocks[:count], blocks[count:]
                self.owned[row] += new
                self.table[row, start : start + count] = torch.tensor(new, dtype=torch.int32)

    def release(self, row: int) -> None:
        """Return the blocks of one sequence to the pool."""
        self.pool.free(self.owned[row])
        self.owned[row] = []
        self.table[row] = 0

    @property
    def used(self) -> Tensor:
        """The columns [B, M] of the table that at least one sequence uses."""
        return self.table[:, : max(len(own) for own in self.owned)]

    @property
    def num_used(self) -> int:
        """The number of blocks that sequences use."""
        return sum(len(own) for own in self.owned)


class PagedCache:
    """A cache of one layer in blocks.

    The model's Cache owns the block table, and reserves blocks before each forward pass.
    """

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
        """Store keys and values in the blocks of their sequences, as LayerCache.fill says."""
        size = self.table.block_size
        new = positions if valid is None else positions.masked_fill(~valid, -1)
        at = new.clamp(min=0)
        # Padding may have positions past the end of the table, so the index is clamped. The next line sends padding to
        # block 0.
        blocks = self.table.table.gather(1, (at // size).clamp(max=self.table.table.shape[1] - 1))
        blocks = torch.where(new >= 0, blocks, 0).to(torch.int64)
        self.keys.write((blocks, at % size), k.transpose(1, 2))
        self.values.write((blocks, at % size), v.transpose(1, 2))
        self.lengths = torch.maximum(self.lengths, new.amax(dim=1) + 1)

    def overwrites(self, new: int) -> bool:
        """Return False: every token has a slot of its own."""
        return False

    def token_positions(self) -> Tensor:
        """Return the positions [B, T] of the stored tokens.

        Slots past the end of a sequence get -1, because they are empty.
        """
        slots = torch.arange(self.table.used.shape[1] * self.table.block_size, device=self.lengths.device)
        return torch.where(slots < self.lengths[:, None], slots, -1)

    def gathered_keys(self, dtype: torch.dtype) -> Tensor:
        """Return a copy of the keys [B, K, T, H] of the stored tokens, in order."""
        return self._gathered(self.keys, dtype)

    def gathered_values(self, dtype: torch.dtype) -> Tensor:
        """Return a copy of the values [B, K, T, Hv] of the stored tokens, in order."""
        return self._gathered(self.values, dtype)

    def _gathered(self, rows: RowStorage, dtype: torch.dtype) -> Tensor:
        """Return the stored rows [B, K, T, H] in the order of the tokens.

        Empty slots are set to zero. They might contain NaN, and NaN times an attention weight of zero is still NaN.
        """
        empty = self.token_positions() < 0
        tokens = rows.read(self.table.used.to(torch.int64), dtype).flatten(1, 2)
        return tokens.masked_fill(empty[..., None, None], 0.0).transpose(1, 2)

    def slots(self, lengths: Tensor) -> Slots:
        """Return the blocks of keys and values at their place in memory, and the block table."""
        (keys, key_scales), (values, value_scales) = (rows.stored(...) for rows in (self.keys, self.values))
        return Slots(keys, values, key_scales, value_scales, lengths, table=self.table.used)

    def forget(self, row: int) -> None:
        """Set the length of the sequence with the index `row` to 0. Does not free blocks: see BlockTable.release."""
        self.lengths[row] = 0

    @property
    def nbytes(self) -> int:
        """The bytes of all blocks that sequences use. Free blocks do not count."""
        heads = self.keys.data.shape[2]
        return self.table.num_used * self.table.block_size * heads * (self.keys.row_bytes + self.values.row_bytes)
