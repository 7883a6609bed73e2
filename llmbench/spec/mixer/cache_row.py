"""The two types of memory that a mixer keeps between decoding steps.

A `CacheRow` stores the keys and values of one token in the KV cache. A `FixedState` is a recurrent state of fixed size.
`llmbench/sizing/kvcache.py` computes their bytes.
"""

from __future__ import annotations

from math import prod
from typing import Literal, NamedTuple


class CacheRow(NamedTuple):
    """The elements that the cache of one layer stores for one token.

    - heads: number of heads of the row. Tensor parallelism splits them over GPUs.
    - key, value: widths in elements of the parts of one head. A quantised cache has one scale per part.
    - formula: number of elements per token, written with names of spec fields.
    - span: number of newest tokens that stay in the cache. None: all tokens stay.
    - tokens_per_row: number of tokens that one row represents. It is 1 except for compressed attention.
    """

    heads: int
    key: tuple[int, ...]
    value: tuple[int, ...]
    formula: str
    span: int | None = None
    tokens_per_row: int = 1

    @property
    def width(self) -> int:
        """The number of elements of one head of the row."""
        return sum(self.key) + sum(self.value)

    @property
    def elements(self) -> int:
        """The number of elements per token, rounded up if one row represents several tokens."""
        return -(-self.heads * self.width // self.tokens_per_row)


StateDType = Literal["fp32", "bf16", "fp16"]
"""A number format of a recurrent state."""


class FixedState(NamedTuple):
    """The state that a recurrent mixer stores for each sequence. Its size does not depend on the sequence length.

    - conv: shape of the stored inputs of the short convolution: (number of inputs, channels).
    - scan: shape of the state of the recurrence.
    - stream_tokens: number of stored vectors of the residual stream (RWKV's token shift). Each has hidden_size
      elements.
    - dtype: number format of the state of the recurrence that the config or every engine asks for. None: each engine
      has its own rule.
    """

    conv: tuple[int, int] | None = None
    scan: tuple[int, ...] | None = None
    stream_tokens: int = 0
    dtype: StateDType | None = None

    @property
    def scan_elements(self) -> int:
        """The number of elements in the state of the recurrence."""
        return 0 if self.scan is None else prod(self.scan)
