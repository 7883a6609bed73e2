"""The candidates that are not implementations of a whole model, and the functions that find a candidate by its `--impl`
name. Importing this package imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from llmbench.errors import unknown
from llmbench.model.implementations import IMPLEMENTATIONS, described, refuse_unavailable

if TYPE_CHECKING:
    from llmbench.model.implementations.interface import Implementation, Traits

__all__ = [
    "CANDIDATES",
    "EXTRA_CANDIDATES",
    "Binder",
    "ExtraCandidate",
    "binder_of",
    "check_name",
    "implementation_of",
    "traits_of",
]


class ExtraCandidate(NamedTuple):
    """A candidate that `profile` and `bench` know in addition to the implementations.

    - `what`: the description that `--help` and the docs show.
    - `build`: a function that returns the candidate.
    """

    what: str
    build: Callable[[], Implementation]


def _built(module: str) -> Implementation:
    """Return the result of `build()` of a module in this folder."""
    implementation: Implementation = import_module(f"{__name__}.{module}").build()
    return implementation


EXTRA_CANDIDATES: dict[str, ExtraCandidate] = {
    "compiled": ExtraCandidate("plain torch, compiled by torch.compile", partial(_built, "compiled")),
    "flex": ExtraCandidate(
        "compiled FlexAttention, which builds its block mask once, before the timing", partial(_built, "flex")
    ),
    "grouped": ExtraCandidate(
        "plain torch; experts are computed with torch's grouped matrix products", partial(_built, "grouped")
    ),
    "rope-fused": ExtraCandidate("flash, with the rotation of fused", partial(_built, "rope_fused")),
}
"""Every extra candidate, by name. In `profile` and `bench`, the name `flex` means the candidate of this folder, not the
implementation `flex` of a model."""


CANDIDATES: dict[str, str] = {name: about.what for name, about in IMPLEMENTATIONS.items()} | {
    name: candidate.what for name, candidate in EXTRA_CANDIDATES.items()
}
"""The description of every name that `profile --impl` accepts: of the implementations, and of the extra candidates."""


def check_name(name: str) -> None:
    """Raise UnknownNameError if there is no candidate with this name."""
    if name not in CANDIDATES:
        raise unknown("implementation", name, CANDIDATES)


def _described(name: str) -> Implementation:
    """Return the implementation that the candidate `name` uses, even if it cannot run on this machine."""
    return EXTRA_CANDIDATES[name].build() if name in EXTRA_CANDIDATES else described(name)


def implementation_of(name: str) -> Implementation:
    """Return the implementation that the candidate `name` uses. Raises CannotRunError if it cannot run on this
    machine."""
    return refuse_unavailable(_described(name))


def traits_of(name: str) -> Traits:
    """Return the properties of the candidate `name` that the op table needs, even if the candidate cannot run on this
    machine."""
    return _described(name).traits


Binder = Callable[[Callable[..., Any]], Callable[..., Any]]
"""A function that takes a piece's `run(implementation, **inputs)` and returns the function `run(**inputs)`."""


def binder_of(name: str) -> Binder:
    """Return the `Binder` with which the candidate `name` computes a piece. Raises CannotRunError if the candidate
    cannot run on this machine."""
    implementation = implementation_of(name)
    if implementation.traits.compiled == "piece":
        from llmbench.bench.extra_candidates import compiled

        return lambda run: compiled.compiled(partial(run, implementation))
    return lambda run: partial(run, implementation)
