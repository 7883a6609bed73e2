"""`llmbench worked`: every number of every step of a tiny case."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from llmbench.cli.measured import need_torch
from llmbench.cli.options import As, Output, Seed, answer, positive_integer, prints_tables
from llmbench.learn.worked import LARGEST, TOPICS, work
from llmbench.report.document import Block, Document, Table, listing, table
from llmbench.report.fields import Cell, Field, records
from llmbench.report.units import signed

if TYPE_CHECKING:
    from llmbench.learn.worked.step import Check, Step, Worked

Topic = Annotated[
    str | None,
    typer.Argument(
        metavar="[TOPIC]", help=f"Topic: {', '.join(TOPICS)}. Default: list the topics.", show_default=False
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        "--tokens",
        metavar="N",
        help=f"Number of tokens, at most {LARGEST}. Of adamw, the steps. Default: that of the topic.",
        parser=positive_integer,
        show_default=False,
    ),
]
Dim = Annotated[
    int | None,
    typer.Option(
        "--dim",
        metavar="N",
        help=f"Number of channels, at most {LARGEST}. Of adamw, the weights. Default: 4.",
        parser=positive_integer,
        show_default=False,
    ),
]

TOPIC_FIELDS: tuple[Field[tuple[str, str]], ...] = (
    Field("topic", "topic", value=lambda topic: topic[0], description="name of the topic"),
    Field("summary", "shows", value=lambda topic: topic[1], wraps=True, description="what the example shows"),
)
STEPS: tuple[Field[Step], ...] = (
    Field("name", description="the noun for the result of the step"),
    Field("formula", description="the formula, with symbols"),
    Field("example", description="the formula of one of the values with its numbers; empty for inputs"),
    Field("note", description="what the values show; may be empty"),
    Field("row", description="what a row of the values stands for; may be empty"),
    Field("rows", description="labels of the rows", value=lambda step: list(step.rows)),
    Field("columns", description="labels of the columns", value=lambda step: list(step.columns)),
    Field(
        "values",
        description="the values, row by row, in full fp64 precision; null where there is no value",
        value=lambda step: [list(row) for row in step.values],
    ),
)
CHECKS: tuple[Field[Check], ...] = (
    Field("module", description="the module that computed the same values"),
    Field("difference", description="largest absolute difference between its values and those of the last steps"),
)


class Value(NamedTuple):
    """One value of one step, for CSV."""

    step: int
    name: str
    row: str
    column: str
    value: float | None


VALUES: tuple[Field[Value], ...] = tuple(Field(name) for name in Value._fields)


@prints_tables
def command(
    topic: Topic = None,
    tokens: Tokens = None,
    dim: Dim = None,
    seed: Seed = 0,
    format: As = "table",
    output: Output = None,
) -> None:
    """Show every number of every step of a tiny case, in fp64.

    Each step has its formula, one value with the numbers put into the formula, and all values. The last line compares
    the result with the module of the PyTorch model, or of torch. Drawn numbers have one decimal, so that they can be
    copied. Without a topic, the command lists the topics.

    Examples:

      llmbench worked

      llmbench worked attention

      llmbench worked rmsnorm

      llmbench worked rope --tokens 5 --dim 8 --seed 3

      llmbench worked flash --format markdown

      llmbench worked adamw --format json
    """
    inputs = {"topic": topic, "tokens": tokens, "dim": dim, "seed": seed}
    if topic is None:
        lines = ["`llmbench worked TOPIC` shows an example"]
        answer(listing("worked", "topics", TOPIC_FIELDS, [*TOPICS.items()], inputs=inputs, lines=lines), format, output)
        return
    if topic in TOPICS:
        need_torch("worked")
    worked = work(topic, tokens=tokens, dim=dim, seed=seed)
    answer(document(worked, inputs), format, output)


def document(worked: Worked, inputs: dict[str, Any]) -> Document:
    """Return the answer for a worked example. `inputs`: the options."""
    case = worked.case
    title = f"{worked.title} · {worked.counts} {case.tokens} · dim {case.dim} · seed {case.seed} · fp64"
    blocks = [Block(answer=title), *(_block(number, step) for number, step in enumerate(worked.steps, start=1))]
    blocks[-1].lines += [
        f"check: the largest difference from the {check.module} is {_difference(check)}" for check in worked.checks
    ]
    return Document(
        command="worked",
        inputs=inputs,
        rows_key="steps",
        rows=records(STEPS, worked.steps),
        blocks=blocks,
        also={"title": worked.title, "checks": records(CHECKS, worked.checks)},
        tables=[table(VALUES, list(_values(worked.steps)))],
    )


def _difference(check: Check) -> str:
    return signed(f"{check.difference:.1e}") if check.difference else "0"


def _values(steps: Sequence[Step]) -> Iterator[Value]:
    for number, step in enumerate(steps, start=1):
        for row, values in zip(step.rows, step.values, strict=True):
            for column, value in zip(step.columns, values, strict=True):
                yield Value(number, step.name, row, column, value)


def _block(number: int, step: Step) -> Block:
    """Return the section of a step. All values of a step have the same number of decimals."""
    values = [value for row in step.values for value in row if value is not None]
    label = max(map(len, (step.row, *step.rows)))
    decimals = _decimals(values, room=(WIDTH - label) // len(step.columns) - GAP)
    columns: list[Field[Any]] = [
        Field("row", step.row), *(Field(f"c{place}", name, "number") for place, name in enumerate(step.columns))
    ]  # fmt: skip
    rows = [
        [label, *(None if value is None else Cell(value, _text(value, decimals)) for value in values)]
        for label, values in zip(step.rows, step.values, strict=True)
    ]
    return Block(
        headline=f"{number}. {step.name}: {step.formula}",
        table=Table(columns=columns, rows=rows),
        lines=[text for text in (step.example, step.note) if text],
    )


def _text(value: float, decimals: int) -> str:
    return signed(f"{value + 0.0:,.{decimals}f}")


WIDTH = 76
"""The width of a table without its indent, in characters. With it, a table fits into 80 columns."""
GAP = 2
"""The number of spaces between two columns."""
MOST_DECIMALS = 10
"""The largest number of decimals of a value in a table."""


def _decimals(values: Sequence[float], *, room: int) -> int:
    """Return the number of decimals for some values: as many as they have, or else four significant digits of the
    smallest one. room: the characters of a column, which can be too few for so many decimals."""
    for decimals in range(5):
        if all(abs(value - round(value, decimals)) < 1e-12 for value in values):
            return decimals
    sizes = [math.floor(math.log10(abs(value))) for value in values if abs(value) > 1e-12]
    before = max(0, *sizes) if sizes else 0
    room_for_decimals = room - len("−0.") - before
    return max(1, min(MOST_DECIMALS, max(4, 2 - min(sizes, default=0)), room_for_decimals))
