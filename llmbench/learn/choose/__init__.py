"""Choose the parts of a model for a goal, a context length, a device and a number of parameters.

Each decision compares a few alternatives by arithmetic. All alternatives of a decision have the same number of
parameters: the width of the feed-forward makes up for the difference. What arithmetic cannot settle, the quality of the
trained model, is cited from papers and labelled so.

The rule is the same for every decision. The alternatives stand in the order of their reported quality. The first one is
chosen, unless a later one has a goal figure that is at least GAIN times better, and papers report a quality close to
that of the first one. An alternative for which papers report a clear loss is shown, but never chosen.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import NamedTuple

from llmbench.errors import LLMBenchError
from llmbench.learn.choose.blueprint import Blueprint, first_blueprint
from llmbench.learn.choose.candidate import Candidate, Setting
from llmbench.learn.choose.decision import Alternative, Decision
from llmbench.learn.choose.goals import GOALS, Goal, GoalName

__all__ = ["DECISIONS", "GAIN", "Choice", "Decided", "Option", "choose"]

DECISIONS = ("shape", "positions", "kv_heads", "feed_forward", "window", "experts", "attention")
"""The decisions, in the order in which they are taken. The file of a decision has its name."""

GAIN = 1.25
"""The least improvement of the goal figure for which an alternative with a close quality is chosen."""


class Option(NamedTuple):
    """An alternative and the model that it leads to. `chosen`: whether the rule chooses it."""

    alternative: Alternative
    candidate: Candidate
    chosen: bool


class Decided(NamedTuple):
    """A decision with its alternatives. `why`: the reason for the choice, with the figures."""

    name: str
    decision: Decision
    options: list[Option]
    why: str

    @property
    def chosen(self) -> Option:
        """The alternative that the rule chooses."""
        return next(option for option in self.options if option.chosen)


class Choice(NamedTuple):
    """All decisions, and the model that they lead to."""

    goal: Goal
    setting: Setting
    decided: list[Decided]
    candidate: Candidate


def choose(goal: GoalName, setting: Setting) -> Choice:
    """Take all decisions. Raises LLMBenchError if no model has so few or so many parameters."""
    chosen_goal = GOALS[goal]
    blueprint = first_blueprint(setting.parameters, setting.context)
    setting = setting.on_enough_devices(Candidate(blueprint, setting))
    decided = []
    for name in DECISIONS:
        decision: Decision = import_module(f"llmbench.learn.choose.decisions.{name}").DECISION
        taken = _decide(name, decision, blueprint, chosen_goal, setting)
        blueprint = taken.chosen.candidate.blueprint
        decided.append(taken)
    return Choice(chosen_goal, setting, decided, Candidate(blueprint, setting))


def _decide(name: str, decision: Decision, blueprint: Blueprint, goal: Goal, setting: Setting) -> Decided:
    alternatives, candidates, figures, impossible = [], [], [], []
    for alternative in decision.alternatives(blueprint, setting):
        try:
            candidate = Candidate(blueprint.changed(**alternative.change), setting)
            figures.append(goal.figure(candidate))
        except LLMBenchError:  # a table is larger than the model, or the devices cannot share the heads
            if alternative.quality == "first":
                raise
            impossible.append(alternative)
            continue
        alternatives.append(alternative)
        candidates.append(candidate)
    chosen = 0
    for place, alternative in enumerate(alternatives):
        if alternative.quality == "close" and goal.gain(figures[chosen], figures[place]) >= GAIN:
            chosen = place
    options = [
        Option(alternative, candidate, place == chosen)
        for place, (alternative, candidate) in enumerate(zip(alternatives, candidates, strict=True))
    ]
    why = [_reason(alternatives, figures, chosen, goal)]
    why += [f"Not possible with these parameters and devices: {alternative.name}" for alternative in impossible]
    return Decided(name, decision, options, ". ".join(why))


def _reason(alternatives: list[Alternative], figures: list[float], chosen: int, goal: Goal) -> str:
    first, taken = alternatives[0], alternatives[chosen]
    if len(alternatives) == 1:
        return f"{first.name}: there is no alternative at this size"
    if chosen:
        gain = goal.gain(figures[0], figures[chosen])
        return f"{taken.name}: {_better(gain, goal)} than {first.name}, and papers report a quality close to it"
    others = range(1, len(alternatives))
    allowed = [place for place in others if alternatives[place].quality == "close"]
    refused = [place for place in others if alternatives[place].quality == "loss"]
    parts = [f"{first.name}: no alternative has a better quality in papers"]
    if allowed:
        best = max(allowed, key=lambda place: goal.gain(figures[0], figures[place]))
        gain = goal.gain(figures[0], figures[best])
        parts.append(
            f"no alternative of close quality is {GAIN:g}× better for the goal: {alternatives[best].name}, the best of "
            f"them, is {_floor(gain):.2f}× as good as {first.name}"
        )
    worse = max(refused, key=lambda place: goal.gain(figures[0], figures[place]), default=None)
    if worse is not None and goal.gain(figures[0], figures[worse]) >= GAIN:
        gain = goal.gain(figures[0], figures[worse])
        parts.append(f"{alternatives[worse].name} would be {_better(gain, goal)}, but papers report a loss")
    return ". ".join(part[0].upper() + part[1:] if number else part for number, part in enumerate(parts))


def _floor(gain: float) -> float:
    """Round down to two decimals, so that a gain below GAIN does not look equal to it."""
    return math.floor(100 * gain) / 100


def _better(gain: float, goal: Goal) -> str:
    return f"{gain:.2f}× better for the goal" if math.isfinite(gain) else f"the only one with {goal.noun}"
