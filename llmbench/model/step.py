"""The inputs that all layers of one forward pass share.

Dimensions: B batch, S length, D hidden size, E encoder length, L layers, W width of a per-layer embedding.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from llmbench.model.implementations.interface import Implementation
from llmbench.model.positions import Tables


class Step(NamedTuple):
    """The shared inputs of one forward pass through a stack of layers.

    - `positions` [B, S]: the positions of the new tokens.
    - `valid` [B, S]: false for padding. None: no token is padding.
    - `plain`: whether every sequence starts with this pass, at position 0. If there is a cache, it is empty.
    - `tables`: the tables cos and sin of every rotation.
    - `lengths` [B]: the number of tokens per sequence in the cache, including the new tokens. None: there is no cache.
    - `memory` [B, E, D]: the output of an encoder. None: the cache has it, or the model has no encoder.
    - `memory_valid` [B, E]: false for padding in `memory`. None: no encoder token is padding.
    - `per_layer` [B, S, L, W]: the per-layer embeddings of the new tokens. None: the model has none.
    - `dropout`: the share of elements that dropout sets to 0. It is 0 outside training.
    """

    positions: Tensor
    valid: Tensor | None
    plain: bool
    tables: Tables
    implementation: Implementation
    lengths: Tensor | None = None
    memory: Tensor | None = None
    memory_valid: Tensor | None = None
    per_layer: Tensor | None = None
    dropout: float = 0.0

    def dropped(self, x: Tensor) -> Tensor:
        """Return x after dropout: each element becomes 0 with the probability p, or is divided by 1 − p."""
        return F.dropout(x, self.dropout) if self.dropout else x
