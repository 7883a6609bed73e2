"""The pieces of a model that `llmbench profile` times by themselves. Importing this package imports no torch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from llmbench.errors import unknown
from llmbench.spec.base import word_list

if TYPE_CHECKING:
    from llmbench.bench.pieces.piece import Piece

__all__ = ["PIECES", "AboutPiece", "default_implementations", "describe_piece", "find_piece"]


class AboutPiece(NamedTuple):
    """The description of a piece, for `--help` and the docs.

    - `place`: the file in this folder, and the constant in that file.
    - `what`: the part of a model that is timed.
    - `impl`, `cpu_impl`: the default implementation on a GPU and on a CPU.
    - `experiment`: the experiment of `bench` that compares several implementations of the piece. "": there is none.
    """

    place: str
    what: str
    impl: str = "fused"
    cpu_impl: str = "standard"
    experiment: str = ""


PIECES: dict[str, AboutPiece] = {
    "attention": AboutPiece(
        "attention.ATTENTION",
        "softmax(q kᵀ) v of a layer over whole sequences",
        impl="flash",
        cpu_impl="flash",
        experiment="attention",
    ),
    "decode": AboutPiece(
        "attention.DECODE", "attention for one new token per sequence on its cache", impl="flash", cpu_impl="flash"
    ),
    "mla": AboutPiece(
        "attention.MLA",
        "latent attention in absorbed form, for one new token per sequence on its cache",
        impl="flash",
        cpu_impl="sdpa",
    ),
    "norm": AboutPiece("pointwise.NORM", "the norm of a layer's input", experiment="norms"),
    "rope": AboutPiece("pointwise.ROPE", "the rotation of queries and keys"),
    "glu": AboutPiece("pointwise.GLU", "act(gate) · up in a gated feed-forward", experiment="activations"),
    "moe": AboutPiece("moe.MIXTURE", "router, experts and shared experts of a layer", experiment="moe"),
    "loss": AboutPiece("blocks.LOSS", "the output head, and the cross-entropy of its logits"),
    "block": AboutPiece("blocks.BLOCK", "one layer of the model", cpu_impl="flash"),
    "model": AboutPiece(
        "blocks.MODEL",
        "the whole model: logits in a forward pass, the loss and gradients with a backward pass",
        cpu_impl="flash",
    ),
}
"""Every piece, by name."""


def default_implementations() -> str:
    """Return sentences that say which implementation `profile` times by default, for each piece and device."""

    def rule(chosen: dict[str, str], rest: str) -> str:
        names: dict[str, list[str]] = {}
        for piece, impl in chosen.items():
            names.setdefault(impl, []).append(piece)
        names.pop(rest)
        texts = [f"{impl} for {word_list(few)}" for impl, few in names.items()]
        return "; ".join([*texts, f"{rest} for the other pieces"])

    usual = AboutPiece("", "")
    on_gpu = rule({name: about.impl for name, about in PIECES.items()}, usual.impl)
    on_cpu = rule({name: about.cpu_impl for name, about in PIECES.items()}, usual.cpu_impl)
    return f"Default on a GPU: {on_gpu}. Default on a CPU: {on_cpu}."


def describe_piece(name: str) -> str:
    """Return the description of the piece with this name."""
    return PIECES[name].what


@cache
def find_piece(name: str) -> Piece:
    """Return the piece with this name. Raises UnknownNameError, which suggests the most similar name."""
    if name not in PIECES:
        words = name.lower().replace("_", " ").replace("-", " ")
        meant = [piece for piece, about in PIECES.items() if words in about.what.lower()]
        raise unknown("piece", name, PIECES, near=meant[0] if len(meant) == 1 else None)
    about = PIECES[name]
    module, constant = about.place.split(".")
    piece: Piece = getattr(import_module(f"{__name__}.{module}"), constant)
    return replace(piece, name=name, what=about.what, impl=about.impl, cpu_impl=about.cpu_impl)
