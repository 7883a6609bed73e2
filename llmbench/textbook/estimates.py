"""Figures of the recorded trainings, one per seed, with which claims are decided."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

from llmbench.learn.experiments.statistics import has_learned
from llmbench.textbook.claim import Estimate
from llmbench.textbook.recorded import recorded

__all__ = [
    "condensed",
    "entropy_gain",
    "failures",
    "least",
    "loss_change",
    "loss_ratio",
    "perplexity_change",
    "perplexity_growth",
    "perplexity_rise",
    "reads",
    "steps_ratio",
]

Losses = Sequence[tuple[int, float]]
"""Pairs of a step and the validation loss after it."""


def perplexity_growth(runs: Sequence[str], method: str, length: int) -> Estimate:
    """Return the perplexity of the same tokens at this length, divided by that at the length of the training.

    `runs`: runs of `extrapolate`, one for each seed.
    """
    rows = [row for run in runs for row in recorded(run).where(method=method, length=length)]
    changes = [row["change"] for row in rows if row["loss"] is not None]
    return Estimate.of(changes, logarithms=True) if len(changes) == len(rows) else Estimate(None)


def perplexity_rise(runs: Sequence[str], method: str, length: int) -> Estimate:
    """Return how much `perplexity_growth` is above 1."""
    return _change(perplexity_growth(runs, method, length))


def _change(ratio: Estimate) -> Estimate:
    mean, low, high = (None if end is None else end - 1 for end in ratio[:3])
    return ratio._replace(mean=mean, low=low, high=high)


def reads(run: str, method: str, length: int) -> Estimate:
    """Return 1 if a model can read sequences of this length at all, else 0. `run`: a run of `extrapolate`."""
    (row,) = recorded(run).where(method=method, length=length)
    return Estimate(float(row["loss"] is not None))


def failures(run: str, arm: str, layers: int) -> Estimate:
    """Return the share of the trainings of a variant that failed, over the seeds of a run of `dynamics`."""
    record = recorded(run)
    learned = [has_learned(row["loss"], record.text.unigram) for row in record.where(arm=arm, layers=layers)]
    return Estimate(learned.count(False) / len(learned), seeds=len(learned))


def least(run: str, arm: str, probe: str, *, whole: float = 1.0) -> Estimate:
    """Return the smallest value of a probe in the trainings of a variant, divided by `whole`.

    `run`: a run of `dynamics`. The smallest value is that of all heads, layers and observed steps.
    """
    return Estimate.of([_least(row, probe) / whole for row in recorded(run).where(arm=arm)])


def _least(row: dict[str, Any], probe: str) -> float:
    return float(min(value for _, value in row["courses"][probe]))


def condensed(run: str, arm: str, rank: float) -> Estimate:
    """Return the largest share of pairs of neurons with nearly the same direction, before the rank falls.

    `run`: a run of `dynamics`. The share is that of the layer with the most pairs. It counts until the first observed
    step at which the effective rank of queries times keys of some head is below `rank`.
    """
    shares = []
    for row in recorded(run).where(arm=arm):
        fallen = next((step for step, value in row["courses"]["qk_rank"] if value < rank), math.inf)
        shares.append(max(share for step, share in row["courses"]["condensation"] if step <= fallen))
    return Estimate.of(shares)


def entropy_gain(run: str, arm: str, other: str, lr: float) -> Estimate:
    """Return how much higher the smallest attention entropy of a variant is than that of another one, paired by seed.

    `run`: a run of `dynamics`. The entropy is a share of ln(visible keys).
    """
    probe = "normalised_entropy"
    return Estimate.of([_least(new, probe) - _least(old, probe) for new, old in _pairs(run, arm, other, lr=lr)])


def loss_ratio(run: str, arm: str, other: str, lr: float) -> Estimate:
    """Return the last loss of a variant, divided by that of another one, paired by seed. `run`: a run of `dynamics`."""
    ratios = [math.log(new["loss"] / old["loss"]) for new, old in _pairs(run, arm, other, lr=lr)]
    return Estimate.of(ratios, logarithms=True)


def _pairs(run: str, arm: str, other: str, **fields: Any) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the rows of two variants with the same seed."""
    return zip(*(recorded(run).where(arm=name, **fields) for name in (arm, other)), strict=True)


def steps_ratio(run: str, arm: str, other: str, layers: int) -> Estimate:
    """Return the steps of a variant until it has some loss, divided by those of another variant.

    The loss is that which both variants reach: the higher one of their last losses. `run`: a run of `dynamics`.
    """
    ratios = []
    for new, old in _pairs(run, arm, other, layers=layers):
        ours, theirs = new["losses"], old["losses"]
        loss = max(ours[-1][1], theirs[-1][1])
        ratios.append(math.log(_steps_until(loss, ours) / _steps_until(loss, theirs)))
    return Estimate.of(ratios, logarithms=True)


def _steps_until(loss: float, losses: Losses) -> float:
    """Return the steps after which the validation loss has fallen to `loss`, on lines between the validations."""
    for (step, above), (later, below) in pairwise(losses):
        if below <= loss:
            return step + (later - step) * (above - loss) / (above - below)
    raise ValueError(f"the loss never falls to {loss}")


def perplexity_change(run: str, step: str, before: str) -> Estimate:
    """Return the change of the perplexity from one design to another as a share. It is negative if it falls.

    `run`: a run of `ablate`. The losses are paired by seed.
    """
    (new,), (old,) = (list(recorded(run).where(step=name)) for name in (step, before))
    return _change(Estimate.of([a - b for a, b in zip(new["losses"], old["losses"], strict=True)], logarithms=True))


def loss_change(run: str, step: str, before: str) -> Estimate:
    """Return how much lower the loss of one design is than that of another one, as a negative share of the latter."""
    (new,), (old,) = (list(recorded(run).where(step=name)) for name in (step, before))
    return Estimate.of([a / b - 1 for a, b in zip(new["losses"], old["losses"], strict=True)])
