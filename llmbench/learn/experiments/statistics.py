"""Rules with which experiments judge losses: intervals and p-values of paired differences (the same seeds, batches or
texts under two conditions), and whether a model has learned anything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

__all__ = ["Difference", "has_learned", "paired", "share_within", "t_quantile"]

CONFIDENCE = 0.95
"""The probability with which an interval contains the true mean."""

LEARNED = 0.05
"""Nats by which the loss of a model must be below that of guessing by frequency. Otherwise its training failed."""


def has_learned(loss: float | None, unigram: float) -> bool:
    """Return whether a model has learned more than the frequencies of the tokens.

    `loss`: in nats; None if the training stopped. `unigram`: the loss of guessing by frequency, in nats.
    """
    return loss is not None and loss <= unigram - LEARNED


class Difference(NamedTuple):
    """The mean of paired differences, its interval of `CONFIDENCE`, and the two-sided p-value of a true mean of 0.

    With one pair, the interval and the p-value are unknown.
    """

    mean: float
    low: float | None
    high: float | None
    p: float | None

    @property
    def verdict(self) -> Literal["lower", "higher", "within noise", "one pair"]:
        """What the interval says about the sign of the true mean."""
        if self.low is None or self.high is None:
            return "one pair"
        if self.high < 0:
            return "lower"
        return "higher" if self.low > 0 else "within noise"


def paired(differences: Sequence[float]) -> Difference:
    """Return the mean of the differences with its interval: mean ± t · s / √n (Student, 1908).

    Raises ValueError if there are no differences.
    """
    count = len(differences)
    if count == 0:
        raise ValueError("there are no differences")
    mean = math.fsum(differences) / count
    if count == 1:
        return Difference(mean, None, None, None)
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in differences) / (count - 1) / count)
    half = t_quantile(CONFIDENCE, count - 1) * error
    p = 1 - share_within(abs(mean) / error, count - 1) if error > 0 else float(mean == 0)
    return Difference(mean, mean - half, mean + half, p)


def t_quantile(share: float, degrees: int) -> float:
    """Return the t for which Student's distribution has `share` of its probability between -t and t."""
    low, high = 0.0, 1.0
    while share_within(high, degrees) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share_within(middle, degrees) < share else (low, middle)
    return high


def share_within(t: float, degrees: int) -> float:
    """Return the probability between -t and t of Student's distribution with a whole number of degrees of freedom.

    The formula is a finite sum (Abramowitz and Stegun, 26.7.3 and 26.7.4).
    """
    angle = math.atan(t / math.sqrt(degrees))
    squared = math.cos(angle) ** 2
    odd = degrees % 2
    term = math.sin(angle) * (math.cos(angle) if odd else 1.0)
    total = 0.0
    for index in range(degrees // 2):
        total += term
        term *= squared * (2 * index + 1 + odd) / (2 * index + 2 + odd)
    return 2 / math.pi * (angle + total) if odd else total
