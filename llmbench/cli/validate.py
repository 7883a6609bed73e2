"""`llmbench validate`: compare a file of published measurements with what llmbench computes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmbench.answers.validate import document, within
from llmbench.cli.options import As, Output, answer, decimal_number, prints_tables, working
from llmbench.validation.kinds import Kind, validate

KindOf = Annotated[
    Kind,
    typer.Argument(
        metavar="weights|kv|engine|memory",
        help="Kind of the figures: stored weights, KV caches, the memory budget of an engine, or training memory.",
        show_default=False,
    ),
]
File = Annotated[
    Path,
    typer.Argument(metavar="FILE.csv", help="A CSV file with one measured run per row.", show_default=False),
]
By = Annotated[
    str | None,
    typer.Option("--by", metavar="COLUMN", help="Also show the metrics of each value of a column.", show_default=False),
]


def _error_bound(text: str | float) -> float:
    """Parse the value of --bound. Raises BadParameter unless it is a number of at least 0."""
    bound = decimal_number(text)
    if bound < 0:
        raise typer.BadParameter(f"{bound} is not at least 0")
    return bound


Bound = Annotated[
    float | None,
    typer.Option(
        "--bound",
        metavar="X",
        parser=_error_bound,
        help="The largest allowed error of a row, as a fraction: 0.05 is 5%. The exit code is 1 if an error is larger.",
        show_default=False,
    ),
]


@prints_tables
def command(
    kind: KindOf,
    file: File,
    by: By = None,
    bound: Bound = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Compare published measurements with what llmbench computes, row by row.

    Each row is computed from its settings alone. A row that llmbench cannot compute is listed with the reason. The
    metrics leave out rows whose settings the file itself marks as uncertain. The page "Validate" of the documentation
    describes the columns of each kind of file.

    With --bound, the exit code is 1 if a row has a larger error, or if no row could be compared.

    Examples:

      llmbench validate kv benchmarks/published/kv_formats.csv

      llmbench validate memory benchmarks/published/training_runs.csv --by quantity --bound 0.2
    """
    with working("comparing the rows"):
        validation = validate(kind, file, by)
    inputs = {"kind": kind, "file": str(file), "by": by, "bound": bound}
    answer(document(validation, inputs, bound=bound), format, output)
    if validation.bug is not None:
        raise validation.bug
    if bound is not None and not within(validation, bound):
        raise typer.Exit(1)
