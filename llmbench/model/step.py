"""The inputs that all layers of one forward pass share.

B batch, S length, D hidden size, E encoder length.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from llmbench.model.implementations.interface import Implementation
from llmbench.model.positions import Tables


class Step(NamedTuple):
    """The shared inputs of one forward pass through a stack of layers.

    positions: the positions of the new tokens [B, S]. valid [B, S]: false for padding; None if no token is padding.
    plain: every sequence starts with this pass, at position 0, so that a cache is still empty. tables: cos and sin of
    every rotation. lengths [B]: with a cache, the tokens of each sequence including the new ones. memory: the output of
    an encoder [B, E, D]. memory_valid [B, E]: false for its padding.
    """

    positions: Tensor
    valid: Tensor | None
    plain: bool
    tables: Tables
    implementation: Implementation
    lengths: Tensor | None = None
    memory: Tensor | None = None
    memory_valid: Tensor | None = None
