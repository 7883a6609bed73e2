"""A claim of a textbook, and the rule that decides it.

A claim is one row of data: what the textbook says, its figure, and how llmbench computes or measures the same figure.
The verdict is never written down. It follows from the two figures and a stated tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llmbench.learn.experiments.statistics import paired
from llmbench.textbook.recorded import recorded

__all__ = [
    "ARITHMETIC",
    "MEASURED",
    "MEASURES",
    "Claim",
    "Estimate",
    "Figure",
    "Measured",
    "Outcome",
    "Reading",
    "Result",
    "Training",
    "Verdict",
    "decide",
]

ARITHMETIC = 0.05
"""A computed figure is near the claimed figure if they differ by at most this share of the claimed figure. A textbook
rounds its figures to two or three digits."""

MEASURED = 0.10
"""The same share for a measured figure, which also has noise. For a figure of trainings, it is a share of the claimed
effect: 10% of −8% is less than one percent, so no effect is never near an effect."""

NO_EFFECT = {"ratio": 1.0, "change": 0.0}
"""By unit, the figure of two things that do not differ. Other units have none."""

MEASURES = "llmbench bench textbook --preset full"
"""The command that measures the figures of all claims with readings."""

Verdict = Literal["holds", "holds if", "refuted", "within noise", "needs a GPU"]
Bound = Literal["near", "exact", "or better", "at least", "at most", "between"]
Unit = Literal["ratio", "share", "change", "bytes", "flops", "dollars", "count", "number", "yes"]


class Figure(NamedTuple):
    """A figure that llmbench computes without torch.

    - `formula`: how the figure is computed.
    - `value()` computes the figure, in the unit of the claim.
    - `setting`: the case, if the claim has several.
    """

    formula: str
    value: Callable[[], float]
    setting: str = ""


class Estimate(NamedTuple):
    """A figure of trainings.

    - `mean`: the mean over seeds. None: the models have no such figure.
    - `low`, `high`: the 95% interval of the true mean. None: there is none, for example because there is one seed.
    - `seeds`: the number of seeds. None: the figure is the same for all seeds.
    """

    mean: float | None
    low: float | None = None
    high: float | None = None
    seeds: int | None = None

    @classmethod
    def of(cls, figures: Sequence[float], *, logarithms: bool = False) -> Estimate:
        """Return the estimate of one figure per seed. `logarithms`: the figures are natural logarithms of ratios."""
        found = paired(figures)
        ends = (found.mean, found.low, found.high)
        mean, low, high = (None if end is None else math.exp(end) if logarithms else end for end in ends)
        return cls(mean, low, high, len(figures))


class Training(NamedTuple):
    """A figure that llmbench reads from recorded trainings.

    - `formula`: how the figure is computed.
    - `runs`: the names of the recorded runs.
    - `value()` computes the figure, in the unit of the claim.
    - `setting`: the case, if the claim has several, or why the models have no such figure.
    - `reason`: why the trainings do not decide the claim. "": they decide.
    """

    formula: str
    runs: tuple[str, ...]
    value: Callable[[], Estimate]
    setting: str = ""
    reason: str = ""


class Reading(NamedTuple):
    """How `bench textbook` reads the figure of a claim from the rows of a run.

    - `run`: the name of the run.
    - `kind`: "time ratio": the time of `of` divided by the time of `over`. "time change", "memory change": how much
      more `of` needs than `over`, as a share of `over`.
    """

    run: str
    kind: Literal["time ratio", "time change", "memory change"]
    of: str
    over: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the textbook.

    - `name`: a short name. `says`: the claim in words.
    - `claimed`: the claimed figure. `unit`: its unit. A "change" is a share: −0.25 means 25% less. "yes": 1 for yes, 0
      for no.
    - `at`: the setting that the textbook states, or that is assumed.
    - `source`: the paper or the datasheet behind the claim.
    - `bound`: how our figure must relate to `claimed`. "near": within a tolerance; changes are compared as ratios.
      "exact": equal. "at least", "at most": a bound. "or better": near, or a larger gain (a ratio above 1, a change
      below 0). "between": `claimed` lies between two of our figures, so that the claim holds between their settings.
    - `figures`: our figures, if arithmetic decides the claim.
    - `trainings`: our figures of recorded trainings, if they decide the claim.
    - `reading`: how `bench textbook` measures our figure, if a GPU decides the claim.
    - `command`: the command of llmbench that shows or measures the figure. "": that of the first recorded run, or that
      of all readings.
    - `why`: why the figures agree or differ.
    """

    name: str
    says: str
    claimed: float
    at: str
    source: str
    why: str
    unit: Unit = "ratio"
    bound: Bound = "near"
    figures: tuple[Figure, ...] = ()
    trainings: tuple[Training, ...] = ()
    reading: Reading | None = None
    command: str = ""

    @property
    def settled_by(self) -> Literal["arithmetic", "CPU", "GPU"]:
        """What decides the claim: arithmetic, recorded trainings on a CPU, or a measurement on a GPU."""
        if self.figures:
            return "arithmetic"
        return "CPU" if self.trainings and not any(training.reason for training in self.trainings) else "GPU"

    @property
    def runs(self) -> tuple[str, ...]:
        """The names of the recorded runs behind our figures."""
        return tuple(dict.fromkeys(run for training in self.trainings for run in training.runs))

    @property
    def shown_by(self) -> str:
        """The command of llmbench that shows or measures the figure. "": there is none."""
        if self.command or self.figures:
            return self.command
        return recorded(self.runs[0]).command if self.runs else MEASURES

    @property
    def tolerance(self) -> float:
        """How much a near figure differs from the claimed figure at most."""
        if self.trainings:
            return MEASURED * abs(self.claimed - NO_EFFECT.get(self.unit, 0.0))
        return (ARITHMETIC if self.figures else MEASURED) * abs(self.claimed + (self.unit == "change"))

    def agrees(self, estimate: Estimate) -> bool:
        """Return whether one of our figures agrees with the claimed figure. An interval that contains the claimed
        figure is near it. The figures of "between" are judged together (`decide`)."""
        figure, low, high, _ = estimate
        if figure is None:
            return False
        inside = low is not None and high is not None and low <= self.claimed <= high
        near = inside or abs(figure - self.claimed) <= self.tolerance
        more, less = figure >= self.claimed, figure <= self.claimed
        better = less if self.unit == "change" else more
        return {
            "near": near,
            "exact": figure == self.claimed,
            "or better": near or better,
            "at least": more,
            "at most": less,
            "between": False,
        }[self.bound]

    def within_noise(self, estimate: Estimate) -> bool:
        """Return whether the interval of a figure contains the bound of the claim, or else the figure of no effect.

        The figures of "between" are judged together (`decide`).
        """
        neutral = self.claimed if self.bound in ("at least", "at most") else NO_EFFECT.get(self.unit)
        if self.bound == "between" or neutral is None or estimate.low is None or estimate.high is None:
            return False
        return estimate.low < neutral < estimate.high


class Result(NamedTuple):
    """One of our figures.

    - `figure`: None if our models have no such figure.
    - `agrees`: whether it agrees with the claimed figure, and is not within noise. With "between": whether it is one of
      the two figures next to the claimed figure.
    - `low`, `high`, `seeds`: its interval, if it is the mean over seeds (`Estimate`).
    """

    figure: float | None
    agrees: bool
    setting: str = ""
    formula: str = ""
    low: float | None = None
    high: float | None = None
    seeds: int | None = None
    within_noise: bool = False


class Measured(NamedTuple):
    """A measured figure. `reason`: why there is no figure, or why the figure does not decide the claim. "": it
    decides."""

    figure: float | None
    reason: str = ""


class Outcome(NamedTuple):
    """The verdict on a claim.

    - "holds", "refuted": all of our figures agree with the claimed figure, or none does.
    - "holds if": some of them agree. The settings of these are the condition. With "between", the condition lies
      between these settings.
    - "within noise": the trainings cannot tell.
    - "needs a GPU": no figure decides the claim yet. `reason` says why.
    """

    claim: Claim
    verdict: Verdict
    results: tuple[Result, ...] = ()
    reason: str = ""


def decide(claim: Claim, measured: Measured | None = None) -> Outcome:
    """Return the verdict on a claim. Arithmetic or recorded trainings decide a claim with such figures. A measured
    figure decides another claim, if it was measured at the setting of the claim."""
    results = [_result(claim, Estimate(figure.value()), figure.setting, figure.formula) for figure in claim.figures]
    results += [_result(claim, each.value(), each.setting, each.formula) for each in claim.trainings]
    reasons = [training.reason for training in claim.trainings if training.reason]
    if measured is not None:
        reasons += [measured.reason] if measured.reason else []
        results += [_result(claim, Estimate(measured.figure))] if measured.figure is not None else []
    if not results or reasons:
        return Outcome(claim, "needs a GPU", tuple(results), "; ".join(dict.fromkeys(reasons)))
    if claim.bound == "between":
        results = _next_to(claim.claimed, results)
        return Outcome(claim, _between(claim, results), tuple(results))
    return Outcome(claim, _agreement(results), tuple(results))


def _result(claim: Claim, estimate: Estimate, setting: str = "", formula: str = "") -> Result:
    mean, low, high, seeds = estimate
    noise = claim.within_noise(estimate)
    return Result(mean, claim.agrees(estimate) and not noise, setting, formula, low, high, seeds, noise)


def _agreement(results: Sequence[Result]) -> Verdict:
    agreeing = [result.agrees for result in results]
    if any(agreeing):
        return "holds" if all(agreeing) else "holds if"
    return "within noise" if any(result.within_noise for result in results) else "refuted"


def _next_to(claimed: float, results: Sequence[Result]) -> list[Result]:
    """Return our figures. The next one below and the next one above the claimed figure agree, if both exist."""
    figures = [result.figure for result in results if result.figure is not None]
    below = [figure for figure in figures if figure <= claimed]
    above = [figure for figure in figures if figure >= claimed]
    ends = {max(below), min(above)} if below and above else set()
    return [result._replace(agrees=result.figure in ends) for result in results]


def _between(claim: Claim, results: Sequence[Result]) -> Verdict:
    """Return whether the claimed figure lies between two of our figures, or between the ends of their intervals."""
    ends = [end for result in results for end in (result.low, result.high) if end is not None]
    if any(result.agrees for result in results):
        return "holds if"
    return "within noise" if ends and min(ends) <= claim.claimed <= max(ends) else "refuted"
