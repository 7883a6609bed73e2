"""`llmbench diff`: compare two result files and report regressions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmbench.cli.measured import check_file, need_torch
from llmbench.cli.options import As, Output, answer
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import fitting, plural

if TYPE_CHECKING:
    from llmbench.measure.difference import Change, Difference

Before = Annotated[Path, typer.Argument(metavar="BEFORE", help="A result file, written by `llmbench bench --output`.")]
After = Annotated[Path, typer.Argument(metavar="AFTER", help="Another result file of the same experiment.")]
Everything = Annotated[bool, typer.Option("--all", help="Show unchanged rows too.")]


def command(
    before: Before,
    after: After,
    all: Everything = False,
    format: As = "table",
    output: Output = None,
) -> None:
    """Compare two result files. Exit code 1 if a row became slower, broke or needs more memory.

    Rows are paired by experiment, case and implementation. The noise threshold of a pair is estimated from its samples,
    the reference measurements of both runs and the other implementations in the case. It is at least 10% on a CPU and
    5% on a GPU. A row is `same` if a change by 1.3× is ruled out, else `unclear`. Memory counts as grown if the peak is
    larger by more than 5% and more than a MiB. Reports unreadable lines and differences between the two machines.

    Examples:

      llmbench diff before.jsonl after.jsonl
    """
    need_torch("diff")
    check_file("--output", output)
    from llmbench.measure.difference import diff
    from llmbench.measure.results import read

    first, second = read(before), read(after)
    difference = diff(first, second)
    damaged = [str(damage) for damage in (*first.damaged, *second.damaged)]
    document = Document(
        command="diff",
        inputs={"before": str(before), "after": str(after), "all": all},
        rows_key="changes",
        rows=[_row(change) for change in difference.changes],
        blocks=[_block(difference, damaged, everything=all)],
        version=2,
        also={"notes": [*difference.notes, *damaged], "regressions": len(difference.regressions)},
    )
    answer(document, format, output)
    if difference.regressions:
        raise typer.Exit(1)


def _row(change: Change) -> dict[str, Any]:
    experiment, case, implementation = change.key
    sides = {
        name: None
        if row is None
        else {
            "status": row.status,
            "median_s": row.seconds,
            "added_bytes": None if row.memory is None else row.memory.added_bytes,
        }
        for name, row in (("before", change.before), ("after", change.after))
    }
    return {
        "experiment": experiment,
        "case": dict(case),
        "implementation": implementation,
        "verdict": change.verdict,
        "ratio": change.ratio,
        "noise": change.noise,
        "memory_grew": change.memory_grew,
        **sides,
    }


def _block(difference: Difference, damaged: list[str], *, everything: bool) -> Block:
    shown = [change for change in difference.changes if everything or change.verdict != "same" or change.memory_grew]
    times = [row.seconds for change in shown for row in (change.before, change.after) if row is not None]
    time = fitting("ms", times)
    columns = [
        Column("experiment", spare=1 if len({change.key[0] for change in shown}) == 1 else 0),
        Column("case", wraps=True, name=True),
        Column("implementation", name=True),
        Column("before", time),
        Column("after", time),
        Column("ratio", "ratio"),
        Column("noise", "percent"),
        Column("peak", "ratio", sparse=True),
        Column("verdict"),
    ]
    rows = [
        [
            change.key[0],
            _case(change),
            change.key[2],
            *(None if row is None else row.seconds or row.status for row in (change.before, change.after)),
            change.ratio,
            change.noise,
            change.peak_ratio if change.memory_grew else None,
            f"{change.verdict}, more memory" if change.memory_grew else change.verdict,
        ]
        for change in shown
    ]
    counts = Counter(change.verdict for change in difference.changes)
    tally = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    regressions = plural(len(difference.regressions), "regression") if difference.regressions else "no regression"
    lines = [f"{plural(len(difference.changes), 'row')}: {tally}; {regressions}"]
    gone = [f"{change.key[2]} at {_case(change)}" for change in difference.changes if change.verdict == "gone"]
    if gone:
        more = f"; and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
        lines.append(f"gone (only in the first file, not judged): {'; '.join(gone[:NAMED])}{more}")
    if counts["unclear"]:
        lines.append("unclear: the noise could hide a change by 1.3×; measure again on a quiet machine or for longer")
    table = Table(columns=columns, rows=rows) if rows else None
    return Block(table=table, lines=lines, notes=[*difference.notes, *damaged])


NAMED = 3
"""How many rows that are gone a table names; JSON has all of them."""


def _case(change: Change) -> str:
    return " ".join(f"{name}={value}" for name, value in change.key[1])
