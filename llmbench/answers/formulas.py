"""Formulas with numbers, as rows of JSON and as a table. `--explain` of `kvcache` and `memory` shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmbench.report.document import Block, table
from llmbench.report.fields import Field
from llmbench.report.units import count, size

if TYPE_CHECKING:
    from llmbench.sizing.formula import Formula

FORMULAS: tuple[Field[Formula], ...] = (
    Field("term", "term", description="the figure that the formula computes"),
    Field(
        "formula",
        "formula",
        value=lambda formula: formula.text,
        text=lambda formula: f"{formula.text} = {_value(formula)}" if formula.value else "0",
        wraps=True,
        description="the formula with numbers. A name after a number says what the number is. Numbers, `+`, `−`, `×`, "
        "`/`, brackets, `ceil` and `floor` give the value",
    ),
    Field("value", description="the value of the formula"),
    Field("unit", description="`bytes`, or `parameters`: a number of parameters"),
)


def formula_block(formulas: Sequence[Formula], headline: str = "") -> Block:
    """Return a block with a row for each formula."""
    return Block(headline=headline, table=table(FORMULAS, formulas))


def _value(formula: Formula) -> str:
    return size(formula.value) if formula.unit == "bytes" else count(formula.value)
