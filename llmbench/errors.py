"""What llmbench raises, all below one class whose text is written for users.

::

    LLMBenchError            exit 2, unless a subclass says otherwise
    ├── UnknownNameError     no spec, device or command of that name
    ├── SpecError            a spec, config or override that cannot be right; names the place
    ├── UnsupportedError     a real architecture that llmbench refuses rather than guesses
    ├── LayoutError          a parallel layout that this model or these GPUs cannot have
    └── CannotRunError       exit 3: no GPU, a missing extra, no network

Every error carries a hint where there is something the user can do next. Internal invariants are `assert`s.
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
    """Any failure that the user can understand and mend; `str(error)` is the message, `hint` the next step."""

    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UnknownNameError(LLMBenchError):
    """A name that stands for nothing bundled and no file."""


class SpecError(LLMBenchError):
    """A spec, a config or an override with a missing, unknown, ill-typed or contradictory value."""


class UnsupportedError(LLMBenchError):
    """An architecture that llmbench cannot describe exactly and therefore does not size."""


class LayoutError(LLMBenchError):
    """A parallel layout whose sizes do not divide what they must divide."""


class CannotRunError(LLMBenchError):
    """The request is sound, but this machine cannot run it: no GPU, a missing extra, no network."""

    exit_code = 3


def suggestion(word: str, known: Iterable[str]) -> str | None:
    """The known word closest to `word`, or None where nothing is near enough to be meant."""
    import difflib  # here, because only a failing command pays for it

    near = difflib.get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return near[0] if near else None


def unknown(what: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """That there is no `what` of that name; the hint has the nearest of those that there are, and all of them."""
    names = list(known)
    near = suggestion(name, names)
    hint = (f"did you mean `{near}`? " if near else "") + f"there is {', '.join(names)}"
    return UnknownNameError(f"no {what} `{name}`", hint=hint)
