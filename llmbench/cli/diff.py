"""`llmbench diff`: compare two result files and report regressions."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmbench.bench.results.sentences import about_changes, where
from llmbench.bench.results.words import in_words
from llmbench.cli.measured import check_file
from llmbench.cli.options import As, Output, answer, prints_tables
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, fitted, records

if TYPE_CHECKING:
    from llmbench.measure.regressions import Change, Difference
    from llmbench.measure.results import Row

Before = Annotated[Path, typer.Argument(metavar="BEFORE", help="A result file that `llmbench bench --output` wrote.")]
After = Annotated[Path, typer.Argument(metavar="AFTER", help="The result file of a later run of the same experiment.")]
Everything = Annotated[bool, typer.Option("--all", help="Also show rows that did not change.")]
NAMED = 3
"""A line below the table names at most this many rows that only the first file has. JSON lists all of them."""

UNCHANGED = ("same", "untimed")
"""The verdicts on rows that the table shows only with `--all`."""


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
    Field(
        "verdict",
        "verdict",
        text=lambda change: f"{change.verdict}, more memory" if change.memory_grew else None,
        wraps=True,
        description="`slower`, `faster`, `same`, `unclear` (the noise is too large for a verdict), `broken` or `fixed` "
        "(the status changed), `new` or `gone` (only one file has the row), `untimed` (no time in either file)",
    ),
    Field(
        "implementation",
        "candidate",
        value=lambda change: change.key[2],
        description="name of the implementation or baseline",
    ),
    _time("before_s", "before", lambda change: change.before),
    _time("after_s", "after", lambda change: change.after),
    Field(
        "ratio",
        "time ratio",
        "ratio",
        description="time in the second file / time in the first file; null unless both rows have a time",
    ),
    Field(
        "noise",
        "noise",
        "percent",
        text=lambda change: ">100%" if change.noise is not None and change.noise > 1 else None,
        description="largest relative change that can be noise, in the direction of `ratio`; null if unknown",
    ),
    Field(
        "peak_ratio",
        "peak memory",
        "ratio",
        value=lambda change: change.peak_ratio if change.memory_grew else None,
        in_json=False,
        sparse=True,
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
        tables=[table([Field("case", value=_case), *FIELDS], difference.changes)],
        also={"notes": [*difference.notes, *damaged], "regressions": len(difference.regressions)},
    )
    answer(document, format, output)
    if difference.regressions:
        raise typer.Exit(1)


def _case(change: Change, without: Collection[str] = ()) -> str:
    """Return the case of a change in words, without some of its fields."""
    return ", ".join(in_words(change.row.case, [name for name in change.row.case if name not in without]))


def _block(difference: Difference, damaged: list[str], *, everything: bool) -> Block:
    """Return the block with the changes. Fields of the case that all shown rows share stand above the table."""
    changed = [
        change for change in difference.changes if everything or change.verdict not in UNCHANGED or change.memory_grew
    ]
    shown = sorted(changed, key=lambda change: (not change.worse, change.verdict in ("unclear", *UNCHANGED)))
    cases = [dict(change.row.case) for change in shown]
    shared = [name for name in (cases[0] if cases else {}) if len({str(case.get(name)) for case in cases}) == 1]
    experiments = list(dict.fromkeys(change.key[0] for change in shown))
    common = [*(experiments if len(experiments) == 1 else ()), *in_words(cases[0] if cases else {}, shared)]

    fields = [field for field in FIELDS if field.name != "experiment" or len(experiments) > 1]
    place = next(index for index, field in enumerate(fields) if field.name == "before_s")
    if any(len(case) > len(shared) for case in cases):
        fields.insert(place, Field("case", "case", value=lambda change: _case(change, shared), wraps=True))
    gone = [where(change) for change in difference.changes if change.verdict == "gone"]
    more = f"; and {len(gone) - NAMED} more" if len(gone) > NAMED else ""
    lines = [f"only in the first file: {'; '.join(gone[:NAMED])}{more}"] if gone else []
    notes = [*difference.notes, *damaged]
    if any(change.verdict == "unclear" for change in difference.changes):
        unclear = "unclear: the noise could hide a change by 1.3×; measure again on an idle machine or for longer"
        notes.insert(0, unclear)
    return Block(
        answer=about_changes(difference),
        headline=" · ".join(common),
        table=table(fitted(fields, shown), shown) if shown else None,
        lines=lines,
        notes=notes,
    )
