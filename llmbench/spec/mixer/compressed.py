"""DeepSeek-V4's attention to a window and to compressed entries of the tokens before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from llmbench.spec.base import Fault, Size
from llmbench.spec.faults import divides
from llmbench.spec.mixer.cache_row import CacheRow
from llmbench.spec.mixer.kind import SAVED_BYTES_DIFFER, AttentionKind, Indexer, RotatedHeads
from llmbench.spec.position import Positions, Rope


@final
class CompressedAttention(AttentionKind, frozen=True, tag="compressed"):
    """DeepSeek-V4's attention: one vector per token is the key and the value of all heads, within a window.

    compress_rate: each group of so many tokens also makes one entry, which every later query can see; two projections
    and a trained bias make it. overlap: an entry sums up the group before its own too, so its projections are twice as
    wide. indexer: chooses `top_k` entries per query, from entries of its own. Queries come from a latent of
    `q_lora_rank`. The output goes through `output_groups` narrow matrices of `output_lora_rank` columns, then through
    one to hidden_size.
    """

    num_attention_heads: Size
    head_dim: Size
    q_lora_rank: Size
    output_groups: Size
    output_lora_rank: Size
    sliding_window: Size
    compress_rate: Size | None = None
    overlap: bool = False
    indexer: Indexer | None = None
    positions: Positions | None = None

    label = "compressed attention"
    num_key_value_heads = 1
    position_kinds = (Rope,)
    training_doubt = SAVED_BYTES_DIFFER
    ordinary = None

    @property
    def key_dim(self) -> int:
        return self.head_dim

    @property
    def value_dim(self) -> int:
        return self.head_dim

    @property
    def rotated_heads(self) -> RotatedHeads:
        return RotatedHeads("head_dim", self.head_dim, key_heads=1)

    @property
    def cache_row(self) -> CacheRow:
        return CacheRow(1, (self.head_dim,), (), "head_dim", span=self.sliding_window)

    @property
    def cache_rows(self) -> tuple[CacheRow, ...]:
        rate = self.compress_rate
        if rate is None:
            return (self.cache_row,)
        entries = CacheRow(1, (self.head_dim,), (), "head_dim / compress_rate", tokens_per_row=rate)
        return self.cache_row, entries

    @property
    def indexer_row(self) -> CacheRow | None:
        if self.indexer is None or self.compress_rate is None:
            return None
        rate = self.compress_rate
        return CacheRow(1, (self.indexer.head_dim,), (), "index_head_dim / compress_rate", tokens_per_row=rate)

    def faults(self) -> Iterator[Fault]:
        yield from divides(self, "output_groups", "num_attention_heads")
        yield from AttentionKind.faults(self)
        if self.compress_rate is None and self.overlap:
            yield Fault("overlap", "there are no entries to overlap", "set compress_rate")
        if self.compress_rate is None and self.indexer is not None:
            yield Fault("indexer", "there are no entries to choose from", "set compress_rate")
