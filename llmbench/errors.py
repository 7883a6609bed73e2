"""The exceptions of llmbench. All are subclasses of LLMBenchError, whose message is written for users.

::

    LLMBenchError            exit 2, unless a subclass says otherwise
    ├── UnknownNameError     no spec, device or command has that name
    ├── SpecError            a spec, config or override has a wrong value; the message names the field
    ├── UnsupportedError     llmbench refuses the architecture, because it would have to guess
    ├── LayoutError          the model cannot be divided as the parallel layout says
    └── CannotRunError       exit 3: no GPU, a missing extra, no network

An error has a hint if the user can do something about it. `assert` is for conditions that cannot occur.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = [
    "CannotRunError",
    "LLMBenchError",
    "LayoutError",
    "SpecError",
    "UnknownNameError",
    "UnsupportedError",
    "suggestion",
]


class LLMBenchError(Exception):
    """An error that the user can understand and correct. `str(error)` is the message; `hint` is the next step."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UnknownNameError(LLMBenchError):
    """The user gave a name that llmbench does not know: neither a name in its lists nor a file."""


class SpecError(LLMBenchError):
    """A spec, a config or an override with a missing, unknown, ill-typed or contradictory value."""


class UnsupportedError(LLMBenchError):
    """An architecture that llmbench cannot describe exactly and therefore does not size."""


class LayoutError(LLMBenchError):
    """A parallel layout that is invalid, or by which the model cannot be divided."""


class CannotRunError(LLMBenchError):
    """The request is valid, but this machine cannot run it: no GPU, a missing extra, no network."""

    exit_code = 3


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to `word`, or None if no word is similar."""
    import difflib  # imported here, because only a failing command needs it

    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not in `known`. Its hint gives the most similar name and lists all names."""
    names = list(known)
    near = suggestion(name, names)
    hint = (f"did you mean `{near}`? " if near else "") + f"choose from {', '.join(names)}"
    return UnknownNameError(f"unknown {kind} `{name}`", hint=hint)
