"""The pieces of a model that `llmbench profile` times by themselves. Importing this package imports no torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from llmbench.errors import unknown

if TYPE_CHECKING:
    from llmbench.bench.pieces.piece import Piece

__all__ = ["PIECES", "describe_piece", "find_piece"]

PIECES: dict[str, tuple[str, str]] = {
    "attention": ("attention.ATTENTION", "softmax(q kᵀ) v of a layer over whole sequences"),
    "decode": ("attention.DECODE", "attention for one new token per sequence on its cache"),
    "mla": ("attention.MLA", "latent attention in absorbed form, for one new token per sequence on its cache"),
    "norm": ("pointwise.NORM", "the norm of a layer's input"),
    "rope": ("pointwise.ROPE", "the rotation of queries and keys"),
    "glu": ("pointwise.GLU", "act(gate) · up in a gated feed-forward"),
    "moe": ("moe.MIXTURE", "router, experts and shared experts of a layer"),
    "loss": ("blocks.LOSS", "the output head, and the cross-entropy of its logits"),
    "block": ("blocks.BLOCK", "one layer of the model"),
    "model": ("blocks.MODEL", "the whole model: logits in a forward pass, the loss and gradients with a backward pass"),
}
"""Every piece, by name. The first text names the file in this folder and the constant in that file. The second text is
the description that `--help` and the docs show."""


def describe_piece(name: str) -> str:
    """Return the description of the piece with this name."""
    return PIECES[name][1]


@cache
def find_piece(name: str) -> Piece:
    """Return the piece with this name. Raises UnknownNameError, which suggests the most similar name."""
    if name not in PIECES:
        raise unknown("piece", name, PIECES)
    module, constant = PIECES[name][0].split(".")
    piece: Piece = getattr(import_module(f"{__name__}.{module}"), constant)
    return replace(piece, name=name, what=PIECES[name][1])
