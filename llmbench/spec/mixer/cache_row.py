"""The memory of a mixer between decoding steps: a row per token in the KV cache, or a state of fixed size.

Attention has a `cache_row`, a recurrent mixer has a `fixed_state`. `llmbench/sizing/kvcache.py` computes their bytes.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple


class CacheRow(NamedTuple):
    """The elements that the cache of one layer stores for one token.

    - heads: rows per token. Tensor parallelism distributes them.
    - key, value: widths of the parts of a row. A quantised cache has one scale per part.
    - formula: elements per token as a formula of spec fields.
    - span: number of the newest tokens that stay in the cache. None: all tokens stay.
    - tokens_per_row: number of tokens that one row stands for. It is 1 except for compressed entries.
    """

    heads: int
    key: tuple[int, ...]
    value: tuple[int, ...]
    formula: str
    span: int | None = None
    tokens_per_row: int = 1

    @property
    def width(self) -> int:
        """Elements in one row."""
        return sum(self.key) + sum(self.value)

    @property
    def elements(self) -> int:
        """Elements per token, rounded up if one row stands for several tokens."""
        return -(-self.heads * self.width // self.tokens_per_row)


class FixedState(NamedTuple):
    """The state that a recurrent mixer stores per sequence. Its size does not depend on the sequence length.

    - conv: stored inputs of the short convolution, as (number of inputs, channels).
    - scan: shape of the state of the recurrence.
    - stream_tokens: number of stored vectors of the residual stream, each of width hidden_size (RWKV's token shift).
    """

    conv: tuple[int, int] | None = None
    scan: tuple[int, ...] | None = None
    stream_tokens: int = 0

    @property
    def scan_elements(self) -> int:
        """Elements in the state of the recurrence."""
        return 0 if self.scan is None else prod(self.scan)
