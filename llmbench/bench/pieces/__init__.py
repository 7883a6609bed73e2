"""The parts of a model that can be timed by themselves."""

from __future__ import annotations

from llmbench.bench.pieces import attending, mixtures, modules, pointwise
from llmbench.bench.setting import Piece
from llmbench.errors import unknown

__all__ = ["PIECES", "piece"]

PIECES = {each.name: each for each in (*attending.PIECES, *pointwise.PIECES, *mixtures.PIECES, *modules.PIECES)}
"""Every piece by its name."""


def piece(name: str) -> Piece:
    """The piece of that name. Raises UnknownNameError with the nearest."""
    if name not in PIECES:
        raise unknown("piece", name, PIECES)
    return PIECES[name]
