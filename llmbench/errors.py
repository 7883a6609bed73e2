"""The exceptions of llmbench, all below one class whose text is written for users.

::

    LLMBenchError            exit 2, unless a subclass says otherwise
    ├── UnknownNameError     no spec, device or command has that name
    ├── SpecError            a spec, config or override with a wrong value; names the place
    ├── UnsupportedError     an architecture that llmbench refuses, because it would have to guess
    ├── LayoutError          a parallel layout that this model or this number of GPUs cannot have
    └── CannotRunError       exit 3: no GPU, a missing extra, no network

An error has a hint if there is a next step for the user. `assert` is for internal invariants.
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
    """A failure that the user can understand and correct. `str(error)` is the message, `hint` the next step."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UnknownNameError(LLMBenchError):
    """A name of nothing bundled and of no file."""


class SpecError(LLMBenchError):
    """A spec, a config or an override with a missing, unknown, ill-typed or contradictory value."""


class UnsupportedError(LLMBenchError):
    """An architecture that llmbench cannot describe exactly and therefore does not size."""


class LayoutError(LLMBenchError):
    """A parallel layout whose sizes do not divide what they must divide."""


class CannotRunError(LLMBenchError):
    """The request is valid, but this machine cannot run it: no GPU, a missing extra, no network."""

    exit_code = 3


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to `word`, or None if no word is similar."""
    import difflib  # imported here, so that only a failing command pays for it

    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """The error for a name that is not one of the known ones; its hint names the most similar one, and lists all."""
    names = list(known)
    near = suggestion(name, names)
    hint = (f"did you mean `{near}`? " if near else "") + f"choose from {', '.join(names)}"
    return UnknownNameError(f"unknown {kind} `{name}`", hint=hint)
