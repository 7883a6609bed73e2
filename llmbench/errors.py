"""The exceptions of llmbench. All are subclasses of LLMBenchError. Their messages are written for users.

::

    LLMBenchError            base class; the process exits with code 2
    ├── UnknownNameError     no spec, device or command has the name
    ├── SpecError            a spec, config or override has a wrong value; the message names the field
    ├── UnsupportedError     llmbench cannot describe the architecture without guessing
    ├── LayoutError          the model cannot be divided as the parallel layout says
    └── CannotRunError       this machine cannot run the request; the process exits with code 3

An error has a hint if the user can do something about it. `assert` is only for conditions that cannot occur.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmbench.printable import printable

__all__ = [
    "CannotRunError",
    "LLMBenchError",
    "LayoutError",
    "SpecError",
    "UnknownNameError",
    "UnsupportedError",
    "install_hint",
    "suggestion",
]


MOST_CHARACTERS = 4000
"""The largest length of a message or a hint. A name in a damaged file can have any length."""


def _text(message: str) -> str:
    """Return a message that a terminal shows as it is.

    A line break stays only in front of an indented line. A name from a stranger's file can contain other line breaks,
    with which it could imitate a hint.
    """
    return printable(re.sub(r"\n(?!  )", r"\\n", message[: MOST_CHARACTERS + 1]), most=MOST_CHARACTERS, lines=True)


class LLMBenchError(Exception):
    """An error that the user can understand and correct.

    `str(error)` is the message. `hint` says what the user can do.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(_text(message))
        self.hint = None if hint is None else _text(hint)


class UnknownNameError(LLMBenchError):
    """The user gave a name that llmbench does not know, such as an unknown model, device or file."""


class SpecError(LLMBenchError):
    """A spec, a config or an override has a missing, unknown, ill-typed or contradictory value."""


class UnsupportedError(LLMBenchError):
    """llmbench cannot describe the architecture exactly, so it does not compute figures for it."""


class LayoutError(LLMBenchError):
    """A parallel layout is invalid, or the model cannot be divided as the layout says."""


class CannotRunError(LLMBenchError):
    """The request is valid, but this machine cannot run it. For example, it lacks a GPU, the network or an extra."""

    exit_code = 3


def install_hint(extra: str) -> str:
    """Return the hint that says how to install the packages of an extra of pyproject.toml, for example `gpu`."""
    return f"run `pip install '.[{extra}]'` in the folder of llmbench's repository"


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that is most similar to `word`, or None if no known word is similar."""
    return next(iter(similar(word, known, 1)), None)


def similar(word: str, known: Iterable[str], most: int) -> list[str]:
    """Return at most `most` known words that are similar to `word`, with the most similar word first."""
    import difflib  # difflib is imported here, because only a failing command needs difflib

    return difflib.get_close_matches(word.lower(), list(known), n=most, cutoff=0.65)


def unknown(kind: str, name: str, known: Iterable[str], *, near: str | None = None) -> UnknownNameError:
    """Return the error for a name that is not in `known`. Its hint gives `near`, or else the most similar name, and
    lists all names."""
    names = list(known)
    near = near or suggestion(name, names)
    hint = (f"did you mean `{near}`? " if near else "") + f"choose from {', '.join(names)}"
    return UnknownNameError(f"unknown {kind} `{name}`", hint=hint)
