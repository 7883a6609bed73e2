"""The position encodings that `extrapolate` compares, and how each one reads longer sequences. No torch.

Dimensions: K scored tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from llmbench.errors import LLMBenchError, unknown
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

__all__ = ["METHODS", "SCORED", "Method", "base_of", "lengths_of", "methods_of"]

SCORED = 32
"""The number of scored tokens at the end of each sequence (K)."""

Positions = Mapping[str, Any]
"""The field `positions` of a spec, as in TOML."""


class Method(NamedTuple):
    """A position encoding, and what it does beyond the training length.

    - `trained(length)`: the positions of the training, on sequences of this length.
    - `read(length, longer)`: the positions with which the trained weights read a longer sequence. None: the same.
    - `scaled`: whether embeddings are multiplied by √D (arXiv 1706.03762, section 3.4). Otherwise small embeddings
      would vanish beside sines and cosines.
    """

    name: str
    about: str
    trained: Callable[[int], Positions]
    read: Callable[[int, int], Positions] | None = None
    scaled: bool = False

    def changes(self, base: ModelSpec, length: int, longer: int) -> dict[str, Any]:
        """Return the fields of the spec for sequences of `longer` tokens, after a training on `length` tokens."""
        beyond = self.read if longer > length else None
        positions = self.trained(length) if beyond is None else beyond(length, longer)
        scale = base.hidden_size**0.5 if self.scaled else base.embedding.scale
        return {"positions": positions, "embedding": {"scale": scale}}


def _rope(length: int) -> Positions:
    return {"kind": "rope"}


def _scaled(kind: str, *, factor: Callable[[int, int], float]) -> Callable[[int, int], Positions]:
    def read(length: int, longer: int) -> Positions:
        scaling: dict[str, Any] = {"kind": kind, "factor": factor(length, longer)}
        if kind != "linear":
            scaling["original_max_position_embeddings"] = length
        return {"kind": "rope", "scaling": scaling}

    return read


METHODS: tuple[Method, ...] = (
    Method("learned", "a trained table", lambda length: {"kind": "learned", "num_positions": length}),
    Method("sinusoidal", "sines and cosines (arXiv 1706.03762)", lambda length: {"kind": "sinusoidal"}, scaled=True),
    Method("rope", "rotary, unchanged (arXiv 2104.09864)", _rope),
    Method(
        "interpolation",
        "RoPE with compressed positions (arXiv 2306.15595)",
        _rope,
        _scaled("linear", factor=lambda length, longer: longer / length),
    ),
    # With the factor 1, the base grows with the sequence: base · (longer / length)^(d / (d - 2)).
    Method("ntk", "RoPE with a larger base", _rope, _scaled("dynamic", factor=lambda length, longer: 1.0)),
    Method(
        "yarn",
        "RoPE by YaRN (arXiv 2309.00071)",
        _rope,
        _scaled("yarn", factor=lambda length, longer: longer / length),
    ),
    Method("alibi", "a bias that grows with the distance (arXiv 2108.12409)", lambda length: {"kind": "alibi"}),
    Method("none", "no positions", lambda length: {"kind": "none"}),
)
"""The methods. No method trains on longer sequences: each changes at most how the trained weights are used."""


def methods_of(names: Sequence[str]) -> list[Method]:
    """Return the named methods. Raises UnknownNameError."""
    known = {method.name: method for method in METHODS}
    for name in names:
        if name not in known:
            raise unknown("position method", name, list(known))
    return [known[name] for name in dict.fromkeys(names)]


def lengths_of(lengths: Sequence[int], trained: int) -> list[int]:
    """Return the lengths with the training length, in rising order. Raises LLMBenchError for one that is too short."""
    found = sorted({trained, *lengths})
    if found[0] < SCORED:
        raise LLMBenchError(
            f"a length of {found[0]} tokens is too short: the last {SCORED} tokens of each sequence are scored"
        )
    return found


def base_of(spec: ModelSpec, methods: Sequence[Method], trained: int) -> ModelSpec:
    """Return the model with the context of the training. Raises SpecError if it cannot have one of the encodings."""
    base = override(spec, {"max_position_embeddings": trained})
    for method in methods:
        override(base, method.changes(base, trained, trained))
    return base
