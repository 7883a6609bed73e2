"""DeepSeek-V4's attention. Each query attends to recent single tokens and to compressed entries of token groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from msgspec.structs import replace

from llmbench.spec.base import Fault, Size
from llmbench.spec.faults import divides
from llmbench.spec.mixer.cache_row import CacheRow
from llmbench.spec.mixer.kind import SAVED_BYTES_DIFFER, AttentionKind, Indexer, RotatedHeads, ScoreSettings
from llmbench.spec.position import Positions, Rope


@final
class CompressedAttention(AttentionKind, frozen=True, tag="compressed"):
    """DeepSeek-V4's attention. All heads share one vector per token, which serves as key and as value.

    A query sees the tokens of its window. It also sees compressed entries. Each entry summarises a group of tokens.

    - num_attention_heads: number of query heads.
    - head_dim: width of a query head, of the shared vector, and of an entry.
    - q_lora_rank: width of the latent vector from which the queries are projected.
    - output_groups: number of groups of heads. Each group has its own first output matrix.
    - output_lora_rank: output width of the first output matrix of a group. A last matrix projects the outputs of all
      groups to hidden_size.
    - sliding_window: number of single tokens that a query can see, including its own token.
    - compress_rate: number of tokens per compressed entry. All later queries can see the entry. Two projections and a
      trained bias compute it. None: the layer has no entries.
    - overlap: whether an entry also summarises the previous group of tokens. The projections of entries are then twice
      as wide.
    - indexer: the indexer that selects `top_k` entries per query. It has its own, smaller entries. None: a query sees
      all entries.
    - positions: the position encoding of this mixer, if it differs from the position encoding of the model.
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

    def score_settings(self, positions: Positions) -> ScoreSettings | None:
        return None  # the scores also need the compressed entries

    def narrowed(self, *, kv_heads: int, span: int) -> CompressedAttention:
        return replace(self, sliding_window=min(span, self.sliding_window))

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
            yield Fault("overlap", "needs compressed entries, but compress_rate is absent", "set compress_rate")
        if self.compress_rate is None and self.indexer is not None:
            yield Fault("indexer", "needs compressed entries, but compress_rate is absent", "set compress_rate")
