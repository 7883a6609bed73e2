"""How strongly each layer learns."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from llmbench.learn.probes.observer import Observation

__all__ = ["gradient_norm", "update_ratio"]


def gradient_norm(seen: Observation) -> list[float]:
    """Return the norm of the gradient of all parameters of each layer together, before clipping."""
    return [
        _norm(seen.gradients[name] for name, _ in seen.of_layer(index) if name in seen.gradients)
        for index in range(len(seen.streams))
    ]


def update_ratio(seen: Observation) -> list[float]:
    """Return ‖W after the step - W before‖ / ‖W before‖ of all parameters of each layer together."""
    ratios = []
    for index in range(len(seen.streams)):
        named = list(seen.of_layer(index))
        change = _norm(value.detach() - seen.before[name] for name, value in named)
        ratios.append(change / (_norm(seen.before[name] for name, _ in named) or 1.0))
    return ratios


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))
