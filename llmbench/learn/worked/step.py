"""The steps of a worked example, and the texts of formulas with their numbers.

Dimensions: T tokens, D channels. Tokens, channels and heads are numbered from 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Case",
    "Check",
    "Step",
    "Worked",
    "difference",
    "dot",
    "draw",
    "joined",
    "number",
    "numbered",
    "step",
    "term",
]


class Case(NamedTuple):
    """The size of a worked example. seed: seed of the drawn numbers."""

    tokens: int
    dim: int
    seed: int = 0


class Step(NamedTuple):
    """One step: a formula and its result.

    `name`: the noun for the result. `formula`: the formula with symbols.
    `example`: the formula of one of the values, with its numbers. Empty: there is nothing to compute.
    `row`: what a row stands for. `rows`, `columns`: their labels. `values`: the result, row by row. None: no value.
    `note`: what the reader can see in the values.
    """

    name: str
    formula: str
    row: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    example: str = ""
    note: str = ""


class Check(NamedTuple):
    """A comparison with a module of llmbench. `difference`: the largest absolute difference of the values."""

    module: str
    difference: float


class Worked(NamedTuple):
    """A worked example: what is computed, its steps, and comparisons of the last values with llmbench's modules.

    `counts`: what `case.tokens` is the number of.
    """

    title: str
    case: Case
    steps: list[Step]
    checks: list[Check]
    counts: str = "tokens"


def draw(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """Return random numbers in fp64 with one decimal, so that a reader can copy them."""
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    return (values * 10).round() / 10 + 0.0  # + 0.0 makes 0 of a negative zero


def numbered(noun: str, count: int) -> tuple[str, ...]:
    """Return labels: `channel 0`, `channel 1`, ….  An empty noun gives numbers alone."""
    return tuple(f"{noun} {index}".strip() for index in range(count))


def step(
    name: str,
    formula: str,
    values: Tensor | Sequence[Sequence[float | None]],
    *,
    row: str = "token",
    rows: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    column: str = "",
    example: str = "",
    note: str = "",
) -> Step:
    """Return a step with the values of a matrix. rows, columns: labels. None: numbers, with the noun `column`."""
    listed = values.tolist() if isinstance(values, Tensor) else values
    return Step(
        name=name,
        formula=formula,
        row=row,
        rows=tuple(rows if rows is not None else numbered("", len(listed))),
        columns=tuple(columns if columns is not None else numbered(column, len(listed[0]))),
        values=tuple(tuple(line) for line in listed),
        example=example,
        note=note,
    )


def number(value: float | Tensor) -> str:
    """Return a number as text: exactly if it has at most four decimals, else with at least four significant digits."""
    amount = float(value)
    if not math.isfinite(amount):
        return "−∞" if amount < 0 else str(amount)
    if abs(amount - round(amount, 4)) < 1e-12 * max(1.0, abs(amount)):
        text = f"{amount:.4f}".rstrip("0").rstrip(".")
    else:
        text = f"{amount:.{max(4, 3 - math.floor(math.log10(abs(amount))))}f}"
    return "0" if text in ("-0", "") else text.replace("-", "−")


def term(value: float | Tensor) -> str:
    """Return a number as a term of a formula. A negative number has brackets."""
    text = number(value)
    return f"({text})" if text.startswith("−") else text


def joined(values: Iterable[float | Tensor], sign: str = "+") -> str:
    """Return the numbers with a sign between them: `0.5 + (−1) + 2`."""
    return f" {sign} ".join(map(term, values))


def dot(first: Tensor, second: Tensor) -> str:
    """Return a scalar product with its numbers: `0.5 × 2 + (−1) × 0.3`."""
    return " + ".join(f"{term(a)} × {term(b)}" for a, b in zip(first, second, strict=True))


def difference(first: Tensor, second: Tensor) -> float:
    """Return the largest absolute difference of two tensors."""
    return float((first.double() - second.double()).abs().max())
