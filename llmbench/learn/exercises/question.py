"""The type of an accounting question, and the grading of an answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple, TypeVar

import msgspec

from llmbench.learn.exercises.answer import Kind, parse_answer
from llmbench.spec.catalog import load_bundled
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

__all__ = ["Asked", "Draw", "Grade", "Model", "Question", "grade"]

T = TypeVar("T")


class Draw:
    """Draws the numbers of a question. Seed 0 gives the first choices, other seeds give a random choice of each."""

    def __init__(self, seed: int) -> None:
        self.random = None if seed == 0 else random.Random(seed)

    def pick(self, first: T, *others: T) -> T:
        """Return one of the choices."""
        return first if self.random is None else self.random.choice((first, *others))


class Model(NamedTuple):
    """A bundled model with some fields replaced. `base`: its name. `changes`: the fields with their new values."""

    base: str
    changes: dict[str, Any]

    @property
    def spec(self) -> ModelSpec:
        """The spec of the changed model."""
        spec = load_bundled(self.base)
        return override(spec, dict(self.changes)) if self.changes else spec

    @property
    def words(self) -> str:
        """The arguments of a command that name the model: `gpt2-xl --set num_hidden_layers=24`."""
        return " ".join([self.base, *(f"--set {field}={value}" for field, value in self.changes.items())])


class Asked(NamedTuple):
    """A question with its numbers.

    `text`: the question. `kind`: what an answer counts. `answer`: the right answer in base units.
    `tolerance`: the largest relative error of an accepted answer. 0: the answer must be exact.
    `solution`: how the answer is computed, with the numbers. `command`: the command that shows the figure, or "".
    `mistakes`: wrong answers in base units, and what leads to them.
    """

    text: str
    kind: Kind
    answer: float
    tolerance: float
    solution: str
    command: str = ""
    mistakes: tuple[tuple[str, float], ...] = ()


class Question(msgspec.Struct, frozen=True):
    """An accounting question. `ask`: the question with the numbers that `Draw` gives. `hint`: help for students."""

    summary: str
    ask: Callable[[Draw], Asked]
    hint: str


class Grade(NamedTuple):
    """The grade of an answer. `answer`: the answer in base units."""

    passed: bool
    answer: float
    message: str


def grade(asked: Asked, text: str) -> Grade:
    """Grade the answer `text`, such as `1.56B` or `12.5 GiB`. The message does not say the right answer.

    Raises LLMBenchError for a text that is not an answer of this kind.
    """
    given, right = parse_answer(text, asked.kind), Fraction(asked.answer)
    passed = abs(given - right) <= Fraction(asked.tolerance) * right
    return Grade(passed, float(given), "right" if passed else f"wrong: {_reason(asked, given, right)}")


NEAR = Fraction(1, 1000)
"""How near an answer must be to a common mistake, relative to it, if the right answer must be exact."""


def _reason(asked: Asked, given: Fraction, right: Fraction) -> str:
    """Return why a wrong answer is wrong: the common mistake that leads to it, or else its direction."""
    margin = Fraction(asked.tolerance) or NEAR
    for what, wrong in asked.mistakes:
        distance = abs(given - Fraction(wrong))
        if distance <= margin * Fraction(wrong) and distance < abs(given - right):
            return what
    for factor, what in _FACTORS if asked.kind == "bytes" else ():
        if abs(given - factor * right) <= margin * factor * right:
            return what
    if not asked.tolerance and abs(given - right) < right / 50:
        return "near, but the answer must be exact"
    return "too large" if given > right else "too small"


_GIB = Fraction(2**30, 10**9)
_FACTORS = (
    (_GIB, "GB and GiB are mixed up: 1 GiB is 1.074 GB"),
    (1 / _GIB, "GB and GiB are mixed up: 1 GiB is 1.074 GB"),
    (Fraction(2), "by a factor of 2"),
    (Fraction(1, 2), "by a factor of 2"),
)
"""Factors between a wrong and the right number of bytes, and their reasons."""
