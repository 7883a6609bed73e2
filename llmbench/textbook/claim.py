"""A claim of a textbook, and the rule that decides it.

A claim is one row of data: what the textbook says, its figure, and how llmbench computes or measures the same figure.
The verdict is never written down. It follows from the two figures and a stated tolerance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

__all__ = ["ARITHMETIC", "MEASURED", "Claim", "Figure", "Measured", "Outcome", "Reading", "Result", "Verdict", "decide"]

ARITHMETIC = 0.05
"""A computed figure is near the claimed figure if they differ by at most this share of the claimed figure. A textbook
rounds its figures to two or three digits."""

MEASURED = 0.10
"""The same share for a measured figure, which also has noise."""

Verdict = Literal["holds", "holds if", "refuted", "needs a CPU", "needs a GPU"]
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


class Reading(NamedTuple):
    """How `bench textbook` reads the figure of a claim from the rows of a run.

    - `run`: the name of the run.
    - `kind`: "time ratio": the time of `of` divided by the time of `over`. "time change", "memory change": how much
      more `of` needs than `over`, as a share of `over`. "runs": 1 if `of` runs, 0 if its model refuses to run. "loss":
      the loss of `of` at the end of a short training, as a share of the loss of guessing.
    - `setting`: the case, if the claim has several.
    - `any_size`: whether a smaller model than that of the claim also decides it.
    """

    run: str
    kind: Literal["time ratio", "time change", "memory change", "runs", "loss"]
    of: str
    over: str = ""
    setting: str = ""
    any_size: bool = False


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
      below 0). "between": `claimed` lies between the smallest and the largest of our figures.
    - `figures`: our figures, if arithmetic decides the claim.
    - `readings`: how `bench textbook` measures our figures, if arithmetic does not decide the claim.
    - `needs`: what decides a claim without figures: a training on a CPU, or a GPU.
    - `command`: the command of llmbench that shows the figure or measures it.
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
    readings: tuple[Reading, ...] = ()
    needs: Literal["CPU", "GPU"] = "GPU"
    command: str = ""

    @property
    def settled_by(self) -> Literal["arithmetic", "CPU", "GPU"]:
        """What decides the claim."""
        return "arithmetic" if self.figures else self.needs

    def agrees(self, figure: float) -> bool:
        """Return whether one of our figures agrees with the claimed figure."""
        tolerance = ARITHMETIC if self.figures else MEASURED
        near = abs(figure - self.claimed) <= tolerance * abs(self.claimed + (self.unit == "change"))
        more, less = figure >= self.claimed, figure <= self.claimed
        better = less if self.unit == "change" else more
        return {
            "near": near,
            "exact": figure == self.claimed,
            "or better": near or better,
            "at least": more,
            "at most": less,
            "between": near,
        }[self.bound]


class Result(NamedTuple):
    """One of our figures. `agrees`: whether it agrees with the claimed figure."""

    figure: float
    agrees: bool
    setting: str = ""
    formula: str = ""


class Measured(NamedTuple):
    """A measured figure. `reason`: why there is no figure, or why the figure does not decide the claim. "": it
    decides."""

    figure: float | None
    reason: str = ""
    setting: str = ""


class Outcome(NamedTuple):
    """The verdict on a claim.

    - "holds", "refuted": all of our figures agree with the claimed figure, or none does.
    - "holds if": some of them agree. The settings of these are the condition.
    - "needs a CPU", "needs a GPU": no figure decides the claim yet. `reason` says why.
    """

    claim: Claim
    verdict: Verdict
    results: tuple[Result, ...] = ()
    reason: str = ""


def decide(claim: Claim, measured: Sequence[Measured] = ()) -> Outcome:
    """Return the verdict on a claim. Arithmetic decides a claim with figures. Measured figures decide another claim, if
    all of them were measured at its setting."""
    results = tuple(_computed(claim, figure) for figure in claim.figures)
    results += tuple(
        Result(one.figure, claim.agrees(one.figure), one.setting) for one in measured if one.figure is not None
    )
    reasons = [one.reason for one in measured if one.reason]
    if not results or reasons:
        needs: Verdict = "needs a CPU" if claim.needs == "CPU" else "needs a GPU"
        return Outcome(claim, needs, results, "; ".join(dict.fromkeys(reasons)))
    if claim.bound == "between":
        figures = [result.figure for result in results]
        return Outcome(claim, "holds" if min(figures) <= claim.claimed <= max(figures) else "refuted", results)
    agreeing = [result.agrees for result in results]
    return Outcome(claim, "holds" if all(agreeing) else "holds if" if any(agreeing) else "refuted", results)


def _computed(claim: Claim, figure: Figure) -> Result:
    value = figure.value()
    return Result(value, claim.agrees(value), figure.setting, figure.formula)
