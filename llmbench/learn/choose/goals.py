"""The goals: which figure of a model counts, and whether it should be large or small."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

from llmbench.learn.choose.candidate import Candidate

__all__ = ["GOALS", "Goal", "GoalName"]

GoalName = Literal["serve", "latency", "long-context", "train", "small-device"]


class Goal(NamedTuple):
    """A goal. `wish`: what the user wants. `field`: the figure of `Candidate` that counts. `noun`: its name.
    `large`: whether it should be large."""

    wish: str
    field: str
    noun: str
    large: bool

    def figure(self, candidate: Candidate) -> float:
        """Return the figure of a model."""
        figure: Callable[[], float] | float = getattr(candidate, self.field)
        return float(figure() if callable(figure) else figure)

    def gain(self, before: float, after: float) -> float:
        """Return by which factor `after` is better than `before`. It is infinite if only the worse figure is 0."""
        better, worse = (after, before) if self.large else (before, after)
        if worse == 0:
            return math.inf if better else 1.0
        return better / worse


GOALS: dict[GoalName, Goal] = {
    "serve": Goal("serve as many users as possible", "users", "users that fit", large=True),
    "latency": Goal("answer one user as fast as possible", "token_s", "time per token", large=False),
    "long-context": Goal("read the longest request", "longest_tokens", "longest request in memory", large=True),
    "train": Goal("train with the least computation", "train_flops_per_token", "FLOPs per trained token", large=False),
    "small-device": Goal(
        "run in the least memory", "footprint_bytes", "memory of the weights and one cache", large=False
    ),
}
"""The goals by name."""
