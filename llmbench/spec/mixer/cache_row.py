"""What a mixer stores between steps: a row per token in the layer's KV cache, or a state of fixed size.

Each kind of mixer has a `cache_row` or a `fixed_state`. `llmbench/sizing/kvcache.py` sums their bytes.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple


class CacheRow(NamedTuple):
    """What one token stores in the cache of one layer.

    heads: rows per token; tensor parallelism splits them. key, value: widths of the parts of a row (a quantised cache
    has a scale per part). formula: elements per token, in the spec's terms. span: the newest tokens that stay in the
    cache; None: all tokens. tokens_per_row: tokens that share one row (compressed entries).
    """

    heads: int
    key: tuple[int, ...]
    value: tuple[int, ...]
    formula: str
    span: int | None = None
    tokens_per_row: int = 1

    @property
    def width(self) -> int:
        """Elements of one head's row."""
        return sum(self.key) + sum(self.value)

    @property
    def elements(self) -> int:
        """Elements per token, rounded up where several tokens share a row."""
        return -(-self.heads * self.width // self.tokens_per_row)


class FixedState(NamedTuple):
    """What a recurrent mixer stores for one sequence of any length.

    conv: the short convolution's newest inputs, as (inputs, channels). scan: shape of the recurrence's state.
    stream_tokens: the newest tokens of the residual stream, each hidden_size wide (RWKV's token shift).
    """

    conv: tuple[int, int] | None = None
    scan: tuple[int, ...] | None = None
    stream_tokens: int = 0

    @property
    def scan_elements(self) -> int:
        """Elements of the recurrence's state."""
        return 0 if self.scan is None else prod(self.scan)
