"""The answer of a command: rows of plain values for programs, and tables with the same values for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Any, TypeVar

import msgspec

from llmbench.report.fields import Cell, Field, records
from llmbench.report.units import heading, shown

__all__ = ["Block", "Document", "Table", "listing", "table", "transposed"]

Item = TypeVar("Item")


class Table(msgspec.Struct, kw_only=True):
    """A table: its columns, and rows with one value per column.

    None stands for an unknown value. "" means that the column does not apply to the row.
    `total`: whether the last row is the total, which a terminal shows in bold.
    """

    columns: Sequence[Field[Any]]
    rows: list[list[Any]]
    total: bool = False

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
        return [heading(column.heading or "", column.unit) for column in self.columns]

    def texts(self) -> list[list[str]]:
        """Return the texts of all cells, row by row."""
        return [
            [
                cell.text if isinstance(cell, Cell) else shown(cell, column.unit)
                for cell, column in zip(row, self.columns, strict=True)
            ]
            for row in self.rows
        ]


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
    lines: list[str] | None = None,
) -> Document:
    """Return a document with one table. The table and the JSON have the same rows."""
    block = Block(table=table(fields, items), lines=lines or [])
    rows = records(fields, items)
    return Document(command=command, inputs=inputs or {}, rows_key=rows_key, rows=rows, blocks=[block])


def transposed(fields: Sequence[Field[Item]], items: Sequence[tuple[str, Item]]) -> Table:
    """Return a table for people, with a row for each field and a column for each (name, item) pair.

    Fields without a heading are left out.
    """
    rows: list[list[Any]] = []
    for field in fields:
        if field.heading is not None:
            rows.append([field.heading, *(field.shown(item) for _, item in items)])
    columns: list[Field[Any]] = [Field("field", "", unbroken=True)]
    return Table(columns=[*columns, *(Field(name, name, wraps=True) for name, _ in items)], rows=rows)


class Block(msgspec.Struct, kw_only=True):
    """One section of an answer for people: a headline, a table, and lines of text below the table.

    `about`: values that all rows of the table share, for example the model. CSV repeats these values in every row.
    `lines`: texts below the table.
    `notes`: texts below the lines. A note is a fact that a reader needs to interpret the figures correctly.
    """

    headline: str = ""
    about: dict[str, Any] = {}
    table: Table | None = None
    lines: list[str] = []
    notes: list[str] = []

    def all_lines(self) -> list[str]:
        """Return all texts below the table: the lines, then the notes."""
        return [*self.lines, *(f"note: {note}" for note in self.notes)]


class Document(msgspec.Struct, kw_only=True):
    """The answer of a command.

    `rows_key`: the key of the rows in the JSON object, for example "models".
    `rows`: the rows for JSON, with plain values in base units.
    `version`: the version of the JSON schema.
    `environment`: the facts about the machine on which measured figures depend. The JSON key "environment" has these
    facts
        and the versions of llmbench and Python.
    `also`: further keys of the JSON object and their values.
    `tables`: the tables for CSV. If the list is empty, CSV has the tables of the blocks.
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
