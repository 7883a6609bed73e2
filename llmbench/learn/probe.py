"""What looks at a model while it trains.

Dimensions: B sequences, S tokens per sequence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llmbench.model.decoder import Decoder

__all__ = ["Moment", "Probe"]


class Moment(NamedTuple):
    """What a probe sees of a step. `tokens`, `targets` [B, S]: the last micro-batch of this rank. `loss`: in nats."""

    step: int
    model: Decoder
    optimizer: torch.optim.Optimizer
    tokens: Tensor
    targets: Tensor
    loss: float
    lr: float


class Probe:
    """Looks at a model while it trains. A subclass overrides one of the methods, or both.

    A probe must leave weights, gradients and random generators as they are.
    """

    def gradients(self, moment: Moment) -> None:
        """Look at the complete gradients of a step, before they are clipped and before the weights change."""

    def updated(self, moment: Moment) -> Mapping[str, Any] | None:
        """Look at the weights after the update. The returned figures are added to the row of the step."""
