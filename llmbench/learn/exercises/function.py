"""The type of a function exercise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from llmbench.kernels.kernel import Inputs, Random

__all__ = ["Function"]


class Function(msgspec.Struct, frozen=True, kw_only=True):
    """A function that a student writes with torch.

    `signature`: its name and arguments. `arguments`: one line per argument, with its shape. `returns`: the result.
    `formula`, `source`: what it computes. `hint`: help for students.
    `reference(**inputs)`: the same computation in plain torch, in the dtype of its inputs.
    `cases(random)`: the calls of the check, each with a description.
    """

    summary: str
    signature: str
    arguments: tuple[str, ...]
    returns: str
    formula: str
    source: str
    hint: str
    reference: Callable[..., Any]
    cases: Callable[[Random], Iterable[tuple[str, Inputs]]]

    @property
    def name(self) -> str:
        """The name of the function."""
        return self.signature.partition("(")[0]
