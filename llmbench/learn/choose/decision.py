"""The types of a decision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from llmbench.learn.choose.blueprint import Blueprint
from llmbench.learn.choose.candidate import Setting

__all__ = ["Alternative", "Decision", "Quality"]

Quality = Literal["first", "close", "loss"]
"""What papers report: the best of the alternatives, a quality close to it, or a clear loss."""


class Alternative(NamedTuple):
    """An alternative. `change`: the fields of the blueprint that it sets. `report`: what papers say about its quality,
    with the source."""

    name: str
    change: dict[str, Any]
    quality: Quality
    report: str


class Decision(NamedTuple):
    """A decision. `question`: what is decided. `columns`: the figures of `Candidate` that show the difference.
    `alternatives`: the alternatives for a blueprint, in the order of their quality. `note`: how to read the figures.
    `command`: the command that checks them. {model} stands for the file of the model, and {context} for the tokens."""

    question: str
    columns: tuple[str, ...]
    alternatives: Callable[[Blueprint, Setting], list[Alternative]]
    note: str
    command: str
