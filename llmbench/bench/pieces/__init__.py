"""The parts of a model that can be timed by themselves."""

from __future__ import annotations

from llmbench.bench.pieces import attention, blocks, moe, pointwise
from llmbench.bench.pieces.piece import Piece
from llmbench.errors import unknown

__all__ = ["PIECES", "find_piece"]

PIECES = {each.name: each for each in (*attention.PIECES, *pointwise.PIECES, *moe.PIECES, *blocks.PIECES)}
"""Every piece by its name."""


def find_piece(name: str) -> Piece:
    """The piece of that name. Raises UnknownNameError with the nearest."""
    if name not in PIECES:
        raise unknown("piece", name, PIECES)
    return PIECES[name]
