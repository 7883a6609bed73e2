"""The values that all layers of one forward pass share.

B batch, S length, D hidden, E encoder length.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from llmbench.model.implementations.interface import Implementation
from llmbench.model.positions import Tables


class Step(NamedTuple):
    """One forward pass of a stack of layers.

    positions: of the new tokens, [B, S]. valid: which of them are real and not padding, [B, S]; None for all of them.
    plain: every sequence starts here, at position 0, and no cache holds anything. tables: cos and sin of every
    rotation. lengths: tokens of each sequence with the new ones, [B], where there is a cache. memory: the output of an
    encoder [B, E, D]; memory_valid: which of its tokens are real, [B, E].
    """

    positions: Tensor
    valid: Tensor | None
    plain: bool
    tables: Tables
    implementation: Implementation
    lengths: Tensor | None = None
    memory: Tensor | None = None
    memory_valid: Tensor | None = None
