"""`llmbench diff`: what got slower between two files of results?"""

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
    """Two files of results: what changed by more than the noise. Exit code 1 where something got slower, broke or takes
    more memory.

    Rows are paired by experiment, case and implementation. The noise of a pair is what the samples, the anchors of both
    runs and the other rivals of its case tell of the machine, and never less than 10% on a CPU and 5% on a GPU. A row
    is the same where a change by 1.3× is ruled out, else unclear. Memory has grown where the peak is larger by 5% and
    by a MiB. Damaged lines, and what differs between the machines, are told.

    Examples:

      llmbench diff before.jsonl after.jsonl
    """
    need_torch("diff")
    check_file("--output", output)
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
        "heavier": change.heavier,
        **sides,
    }


def _block(found: Difference, damaged: list[str], *, everything: bool) -> Block:
    shown = [change for change in found.changes if everything or change.verdict != "same" or change.heavier]
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
            change.peak_ratio if change.heavier else None,
            f"{change.verdict}, more memory" if change.heavier else change.verdict,
        ]
        for change in shown
    ]
    counts = Counter(change.verdict for change in found.changes)
    tally = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    regressions = plural(len(found.regressions), "regression") if found.regressions else "no regression"
    lines = [f"{plural(len(found.changes), 'row')}: {tally}; {regressions}"]
    gone = [f"{change.key[2]} at {_case(change)}" for change in found.changes if change.verdict == "gone"]
    if gone:
        more = f"; and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
        lines.append(f"gone, and not judged: {'; '.join(gone[:NAMED])}{more}")
    if counts["unclear"]:
        lines.append(
            "unclear: the noise hides a change by 1.3×; measure again while the machine is quiet, or for longer"
        )
    table = Table(columns=columns, rows=rows) if rows else None
    return Block(table=table, lines=lines, notes=[*found.notes, *damaged])


NAMED = 3
"""Rows that are gone and are named; JSON has all."""


def _case(change: Change) -> str:
    return " ".join(f"{name}={value}" for name, value in change.key[1])
