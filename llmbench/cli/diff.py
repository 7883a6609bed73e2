"""`llmbench diff`: what got slower between two files of results?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmbench.cli.measured import need_torch
from llmbench.cli.options import As, Output, answer
from llmbench.report.document import Block, Column, Document, Table

if TYPE_CHECKING:
    from llmbench.measure.difference import Change, Difference

Before = Annotated[Path, typer.Argument(metavar="BEFORE", help="A file that `llmbench bench --output` wrote.")]
After = Annotated[Path, typer.Argument(metavar="AFTER", help="Another of the same experiment.")]
Everything = Annotated[bool, typer.Option("--all", help="Show rows that did not change, too.")]


def command(
    before: Before,
    after: After,
    all: Everything = False,
    format: As = "table",
    output: Output = None,
) -> None:
    """Two files of results: what changed by more than the noise. Exit code 1 where something got slower or broke.

    Rows are paired by experiment, case and implementation. The noise of a pair is that of both measurements, and never
    less than 3%; damaged lines, and what differs between the machines, are told.

    Examples:

      llmbench diff before.jsonl after.jsonl
    """
    need_torch("diff")
    from llmbench.measure.difference import diff
    from llmbench.measure.results import read

    first, second = read(before), read(after)
    found = diff(first, second)
    damaged = [str(damage) for damage in (*first.damaged, *second.damaged)]
    document = Document(
        command="diff",
        inputs={"before": str(before), "after": str(after), "all": all},
        rows_key="changes",
        rows=[_row(change) for change in found.changes],
        blocks=[_block(found, damaged, everything=all)],
        also={"notes": [*found.notes, *damaged], "regressions": len(found.regressions)},
    )
    answer(document, format, output)
    if found.regressions:
        raise typer.Exit(1)


def _row(change: Change) -> dict[str, Any]:
    experiment, case, implementation = change.key
    sides = {
        name: None if row is None else {"status": row.status, "median_s": row.seconds}
        for name, row in (("before", change.before), ("after", change.after))
    }
    return {
        "experiment": experiment,
        "case": dict(case),
        "implementation": implementation,
        "verdict": change.verdict,
        "ratio": change.ratio,
        "noise": change.noise,
        **sides,
    }


def _block(found: Difference, damaged: list[str], *, everything: bool) -> Block:
    shown = [change for change in found.changes if everything or change.verdict != "same"]
    rows = [
        [
            change.key[0],
            " ".join(f"{name}={value}" for name, value in change.key[1]),
            change.key[2],
            *(None if row is None else row.seconds or row.status for row in (change.before, change.after)),
            change.ratio,
            change.noise,
            change.verdict,
        ]
        for change in shown
    ]
    columns = [
        Column("experiment"),
        Column("case", wraps=True),
        Column("implementation", name=True),
        Column("before", "ms"),
        Column("after", "ms"),
        Column("ratio", "ratio"),
        Column("noise", "percent"),
        Column("verdict"),
    ]
    counts: dict[str, int] = {}
    for change in found.changes:
        counts[change.verdict] = counts.get(change.verdict, 0) + 1
    tally = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    table = Table(columns=columns, rows=rows) if rows else None
    return Block(table=table, lines=[f"{len(found.changes)} rows: {tally}"], notes=[*found.notes, *damaged])
