"""`llmbench diff`: compare two result files and report regressions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from llmbench.cli.measured import check_file
from llmbench.cli.options import As, Output, answer, prints_tables
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, fitted, records
from llmbench.report.units import plural

if TYPE_CHECKING:
    from llmbench.measure.regressions import Change, Difference
    from llmbench.measure.results import Row

Before = Annotated[Path, typer.Argument(metavar="BEFORE", help="A result file that `llmbench bench --output` wrote.")]
After = Annotated[Path, typer.Argument(metavar="AFTER", help="The result file of a later run of the same experiment.")]
Everything = Annotated[bool, typer.Option("--all", help="Also show rows that did not change.")]
NAMED = 3
"""A line below the table names at most this many rows that only the first file has. JSON lists all of them."""


def _side(row: Row | None) -> dict[str, Any] | None:
    """Return the JSON object for the row of one result file, or None if the file has no such row."""
    if row is None:
        return None
    added = None if row.memory is None else row.memory.added_bytes
    return {"status": row.status, "median_s": row.seconds, "added_bytes": added}


def _time(name: str, heading: str, side: Callable[[Change], Row | None]) -> Field[Change]:
    """Return a table column with the time of a row in one file, or with the row's status if the row has no time."""

    def seconds(change: Change) -> float | None:
        row = side(change)
        return None if row is None else row.seconds

    def status(change: Change) -> str | None:
        row = side(change)
        return None if row is None or row.seconds else row.status

    return Field(name, heading, "ms", seconds, status, in_json=False, scale="time")


FIELDS: tuple[Field[Change], ...] = (
    Field("experiment", "experiment", value=lambda change: change.key[0], description="name of the experiment"),
    Field(
        "case",
        value=lambda change: dict(change.key[1]),
        description="the case: an object with the settings of the measurement",
    ),
    Field("case", "case", value=lambda change: _case(change), wraps=True, unbroken=True, in_json=False),
    Field(
        "implementation",
        "implementation",
        value=lambda change: change.key[2],
        unbroken=True,
        description="name of the implementation or baseline",
    ),
    _time("before_s", "before", lambda change: change.before),
    _time("after_s", "after", lambda change: change.after),
    Field(
        "ratio",
        "ratio",
        "ratio",
        description="time in the second file / time in the first file; null unless both rows have a time",
    ),
    Field(
        "noise",
        "noise",
        "percent",
        description="largest relative change that can be noise, in the direction of `ratio`; null if unknown",
    ),
    Field(
        "peak_ratio",
        "peak",
        "ratio",
        value=lambda change: change.peak_ratio if change.memory_grew else None,
        in_json=False,
        sparse=True,
    ),
    Field(
        "verdict",
        "verdict",
        text=lambda change: f"{change.verdict}, more memory" if change.memory_grew else None,
        description="`slower`, `faster`, `same`, `unclear` (the noise is too large for a verdict), `broken` or `fixed` "
        "(the status changed), `new` or `gone` (only one file has the row)",
    ),
    Field(
        "memory_grew",
        description="whether the peak memory grew by more than 5% and more than 1 MiB; this counts as a regression",
    ),
    Field(
        "before",
        value=lambda change: _side(change.before),
        description="the row in the first file: `status`, `median_s` and `added_bytes` (memory that the call added at "
        "its peak); null if the file has no such row",
    ),
    Field(
        "after",
        value=lambda change: _side(change.after),
        description="the row in the second file, with the keys of `before`",
    ),
)


@prints_tables
def command(
    before: Before,
    after: After,
    all: Everything = False,
    format: As = "table",
    output: Output = None,
) -> None:
    """Compare two result files. The exit code is 1 if a row became slower, broke or needs more memory.

    A row of one file is compared with the row of the other file that has the same experiment, case and implementation.
    The noise of such a pair is estimated from its samples, the reference measurements of both runs and the other
    implementations in the case. The noise is at least 10% on a CPU and 5% on a GPU. A change within the noise is `same`
    if the noise is too small to hide a change by 1.3×, else `unclear`. A row needs more memory if its peak grew by more
    than 5% and by more than 1 MiB. The notes list damaged lines, and differences between the two machines.

    Examples:

      llmbench diff before.jsonl after.jsonl
    """
    check_file("--output", output)
    from llmbench.measure.regressions import diff
    from llmbench.measure.results import read

    first, second = read(before), read(after)
    difference = diff(first, second)
    damaged = [str(damage) for damage in (*first.damaged, *second.damaged)]
    document = Document(
        command="diff",
        inputs={"before": str(before), "after": str(after), "all": all},
        rows_key="changes",
        rows=records(FIELDS, difference.changes),
        blocks=[_block(difference, damaged, everything=all)],
        version=2,
        also={"notes": [*difference.notes, *damaged], "regressions": len(difference.regressions)},
    )
    answer(document, format, output)
    if difference.regressions:
        raise typer.Exit(1)


def _block(difference: Difference, damaged: list[str], *, everything: bool) -> Block:
    shown = [change for change in difference.changes if everything or change.verdict != "same" or change.memory_grew]
    fields = list(FIELDS)
    if len({change.key[0] for change in shown}) == 1:
        fields[0] = msgspec.structs.replace(fields[0], spare=1)
    counts = Counter(change.verdict for change in difference.changes)
    tally = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    regressions = plural(len(difference.regressions), "regression") if difference.regressions else "no regression"
    lines = [f"{plural(len(difference.changes), 'row')}: {tally}; {regressions}"]
    gone = [f"{change.key[2]} at {_case(change)}" for change in difference.changes if change.verdict == "gone"]
    if gone:
        more = f"; and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
        lines.append(f"gone (only the first file has these rows): {'; '.join(gone[:NAMED])}{more}")
    if counts["unclear"]:
        lines.append("unclear: the noise could hide a change by 1.3×; measure again on an idle machine or for longer")
    changes = table(fitted(fields, shown), shown) if shown else None
    return Block(table=changes, lines=lines, notes=[*difference.notes, *damaged])


def _case(change: Change) -> str:
    return " ".join(f"{name}={value}" for name, value in change.key[1])
