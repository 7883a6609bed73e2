"""The answer of a command: rows of plain values for programs, and tables with the same values for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any, NamedTuple, TypeVar

import msgspec

from llmbench.errors import MOST_CHARACTERS
from llmbench.printable import printable
from llmbench.report.fields import Cell, Field, records
from llmbench.report.units import Unit, heading, plural, texts

__all__ = ["Block", "Command", "Document", "Table", "View", "listing", "table", "transposed"]

Item = TypeVar("Item")
NOTES = 3
"""The largest number of notes below a table, unless the user asks for all notes."""


class Command(NamedTuple):
    """A line with a command that people copy. It stays whole where it is shown: no line break changes its meaning.

    `label`: what the command is for, such as `start it:`. `text`: the command, as one line for a shell.
    """

    label: str
    text: str


class View(NamedTuple):
    """The parts of an answer that tables and Markdown show. CSV and JSON have everything.

    `wide`: show all columns, however long the lines are.
    `notes`: show all notes.
    """

    wide: bool = False
    notes: bool = False


class Table(msgspec.Struct, kw_only=True):
    """A table: its columns, and rows with one value per column.

    None stands for an unknown value. "" means that the column does not apply to the row.
    `total`: whether the last row is the total, which a terminal shows in bold.
    `narrow`: the table that a terminal shows instead, if this one is too wide for it.
    """

    columns: Sequence[Field[Any]]
    rows: list[list[Any]]
    total: bool = False
    narrow: Table | None = None

    def for_people(self) -> Table:
        """Return the table that people see. Columns without a heading and empty `sparse` columns are left out."""

        def seen(place: int, column: Field[Any]) -> bool:
            empty = column.sparse and all(row[place] is None for row in self.rows)
            return column.heading is not None and not empty

        return self.only([seen(place, column) for place, column in enumerate(self.columns)])

    def only(self, chosen: Sequence[bool]) -> Table:
        """Return the table with only some columns. `chosen`: for each column, whether it stays."""
        return Table(
            columns=list(compress(self.columns, chosen)),
            rows=[list(compress(row, chosen)) for row in self.rows],
            total=self.total,
        )

    def headings(self) -> list[str]:
        """Return the headings of the columns, with their units."""
        return [_cell(heading(column.heading or "", column.unit)) for column in self.columns]

    def texts(self) -> list[list[str]]:
        """Return the texts of all cells, row by row."""
        columns = [[row[place] for row in self.rows] for place in range(len(self.columns))]
        shown = [cell_texts(cells, column.unit) for cells, column in zip(columns, self.columns, strict=True)]
        return [list(map(_cell, row)) for row in zip(*shown, strict=True)]


def table(fields: Sequence[Field[Item]], items: Iterable[Item], *, total: Item | None = None) -> Table:
    """Return a table with a row for each item and a column for each field. `total`: the item of the last, total row."""
    every = [*items, *(() if total is None else (total,))]
    return Table(
        columns=fields, rows=[[field.cell(item) for field in fields] for item in every], total=total is not None
    )


def listing(
    command: str,
    rows_key: str,
    fields: Sequence[Field[Item]],
    items: Sequence[Item],
    *,
    inputs: dict[str, Any] | None = None,
    answer: str = "",
    lines: list[str] | None = None,
    version: int = 1,
) -> Document:
    """Return a document with one table. The table and the JSON have the same rows."""
    block = Block(answer=answer, table=table(fields, items), lines=lines or [])
    rows = records(fields, items)
    return Document(command=command, version=version, inputs=inputs or {}, rows_key=rows_key, rows=rows, blocks=[block])


def transposed(fields: Sequence[Field[Item]], items: Sequence[tuple[str, Item]]) -> Table:
    """Return a table for people, with a row for each field and a column for each (name, item) pair.

    Fields without a heading are left out.
    """
    rows = [
        [heading(field.heading, field.unit), *cell_texts([field.cell(item) for _, item in items], field.unit)]
        for field in fields
        if field.heading is not None
    ]
    return Table(
        columns=[Field("field", "", wraps=True, repeats=True), *(Field(name, name, wraps=True) for name, _ in items)],
        rows=rows,
    )


def cell_texts(cells: Sequence[Any], unit: Unit) -> list[str]:
    """Return the texts of the cells of a column."""
    plain = [None if isinstance(cell, Cell) else cell for cell in cells]
    return [cell.text if isinstance(cell, Cell) else text for cell, text in zip(cells, texts(plain, unit), strict=True)]


def _cell(text: str) -> str:
    return printable(text, most=MOST_CHARACTERS)


class Block(msgspec.Struct, kw_only=True):
    """One section of an answer for people: a headline, a table, and lines of text below the table.

    `answer`: a sentence that answers the question of the command. It comes first.
    `long_answer`: the answer with all details, which `--wide` shows instead of `answer`. Empty: `answer` has them.
    `long_table`: the table with all rows, which `--wide` shows instead of `table`. None: `table` has them.
    `headline`: what the figures are about, for example the model and the options.
    `about`: values that all rows of the table share, for example the model. CSV repeats these values in every row.
    `lines`: texts below the table.
    `commands`: commands that people copy, below the lines.
    `notes`: texts below the commands, the most important one first. A note is a fact that a reader needs to interpret
        the figures correctly.
    """

    answer: str = ""
    long_answer: str = ""
    headline: str = ""
    about: dict[str, Any] = {}
    table: Table | None = None
    long_table: Table | None = None
    lines: list[str] = []
    commands: list[Command] = []
    notes: list[str] = []

    def above(self, *, wide: bool) -> list[str]:
        """Return the texts above the table. The first one is shown in bold. `wide`: whether to show all details."""
        answer = (wide and self.long_answer) or self.answer
        return [printable(text, lines=True) for text in (answer, self.headline) if text]

    def shown_table(self, *, wide: bool) -> Table | None:
        """Return the table. `wide`: whether to show all rows."""
        return (self.long_table if wide else None) or self.table


class Document(msgspec.Struct, kw_only=True):
    """The answer of a command.

    `rows_key`: the key of the rows in the JSON object, for example "models".
    `rows`: the rows for JSON, with plain values in base units.
    `version`: the version of the JSON schema.
    `environment`: the facts about the machine on which measured figures depend. The JSON key "environment" has these
        facts and the versions of llmbench and Python.
    `also`: further keys of the JSON object and their values.
    `tables`: the tables for CSV. If the list is empty, CSV has the tables of the blocks. CSV has one header, so tables
        whose columns differ from those of the first table are left out.
    """

    command: str
    inputs: dict[str, Any]
    rows_key: str
    rows: list[dict[str, Any]]
    blocks: list[Block]
    version: int = 1
    environment: dict[str, Any] = {}
    also: dict[str, Any] = {}
    tables: list[Table] = []

    def below(self, *, notes: bool) -> list[list[str | Command]]:
        """Return, for each block, what is below its table: its lines, its commands, then its notes.

        A note that an earlier block has is left out. `notes`: whether to return all notes, or at most NOTES per block.
        """
        said: set[str] = set()
        below: list[list[str | Command]] = []
        for block in self.blocks:
            new = [note for note in dict.fromkeys(block.notes) if note not in said]
            said.update(new)
            shown = new if notes else new[:NOTES]
            more = [f"`--notes` shows {plural(len(new) - NOTES, 'more note')}"] if len(shown) < len(new) else []
            commands = [Command(*map(printable, command)) for command in block.commands]
            said_last = [*(f"note: {note}" for note in shown), *more]
            below.append([*map(printable, block.lines), *commands, *map(printable, said_last)])
        return below
