"""The learning rate of each step.

After the warm-up, the rate follows one of three curves:

- cosine: it falls from `lr` to `min_lr` on half a period of a cosine (arXiv 1608.03983, as in nanoGPT).
- constant: it stays at `lr`.
- trapezoid: it stays at `lr`, and falls linearly to `min_lr` in the last fifth of the steps (arXiv 2405.18392).
"""

from __future__ import annotations

import math
from typing import Literal, assert_never

__all__ = ["COOLDOWN", "Schedule", "learning_rate"]

Schedule = Literal["cosine", "constant", "trapezoid"]

COOLDOWN = 0.2
"""The share of the steps in which the rate of a trapezoid falls."""


def learning_rate(step: int, *, schedule: Schedule, lr: float, min_lr: float, warmup: int, steps: int) -> float:
    """Return the learning rate of a step. `step`: the number of the step, from 1 to `steps`.

    - `lr`: the highest rate. In the warm-up, the rate rises linearly to it: step 1 has the rate lr / (warmup + 1).
    - `min_lr`: the rate of the last step.
    - `warmup`: the number of steps before the rate is `lr` for the first time. 0: no warm-up.
    """
    if step <= warmup:
        return lr * step / (warmup + 1)
    match schedule:
        case "constant":
            return lr
        case "cosine":
            done = (step - warmup - 1) / max(1, steps - warmup - 1)
            return min_lr + 0.5 * (1.0 + math.cos(math.pi * min(1.0, done))) * (lr - min_lr)
        case "trapezoid":
            length = max(1, round(COOLDOWN * steps))
            left = min(1.0, max(0, steps - step) / length)
            return min_lr + left * (lr - min_lr)
        case _:
            assert_never(schedule)
