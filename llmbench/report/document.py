"""The answer of a command: rows of plain values for machines, tables of the same values for people."""

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
    """Rows of values under columns. None is unknown, which is never zero. "" does not apply. `total` sets the last row
    apart."""

    columns: Sequence[Field[Any]]
    rows: list[list[Any]]
    total: bool = False

    def for_people(self) -> Table:
        """Without fields that people do not see, and without sparse columns that have no value."""

        def seen(place: int, column: Field[Any]) -> bool:
            empty = column.sparse and all(row[place] is None for row in self.rows)
            return column.heading is not None and not empty

        return self.only([seen(place, column) for place, column in enumerate(self.columns)])

    def only(self, chosen: Sequence[bool]) -> Table:
        """The table with the chosen columns."""
        return Table(
            columns=list(compress(self.columns, chosen)),
            rows=[list(compress(row, chosen)) for row in self.rows],
            total=self.total,
        )

    def headings(self) -> list[str]:
        """The headings for people, with units."""
        return [heading(column.heading or "", column.unit) for column in self.columns]

    def texts(self) -> list[list[str]]:
        """The cells for people."""
        return [
            [
                cell.text if isinstance(cell, Cell) else shown(cell, column.unit)
                for cell, column in zip(row, self.columns, strict=True)
            ]
            for row in self.rows
        ]


def table(fields: Sequence[Field[Item]], items: Iterable[Item], *, total: Item | None = None) -> Table:
    """A row for each item, a column for each field; `total` is an item for the last row, which is set apart."""
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
    """A document with one table, whose rows are those of JSON."""
    block = Block(table=table(fields, items), lines=lines or [])
    rows = records(fields, items)
    return Document(command=command, inputs=inputs or {}, rows_key=rows_key, rows=rows, blocks=[block])


def transposed(fields: Sequence[Field[Item]], items: Sequence[tuple[str, Item]]) -> Table:
    """For people: a row for each field that has a heading, and a column for each item under its name."""
    rows: list[list[Any]] = []
    for field in fields:
        if field.heading is not None:
            rows.append([field.heading, *(field.shown(item) for _, item in items)])
    columns: list[Field[Any]] = [Field("field", "", unbroken=True)]
    return Table(columns=[*columns, *(Field(name, name, wraps=True) for name, _ in items)], rows=rows)


class Block(msgspec.Struct, kw_only=True):
    """One part of an answer for people: a headline, a table, lines under it.

    `about` says what all rows of the table are about, in the form of a JSON row: CSV puts it beside each row.
    `lines` and then `notes` stand under the table; notes say what a reader must know of the figures.
    """

    headline: str = ""
    about: dict[str, Any] = {}
    table: Table | None = None
    lines: list[str] = []
    notes: list[str] = []

    def all_lines(self) -> list[str]:
        """The lines under the table."""
        return [*self.lines, *(f"note: {note}" for note in self.notes)]


class Document(msgspec.Struct, kw_only=True):
    """The answer of a command.

    `rows_key` names the rows in JSON ("models"); `rows` are plain mappings in base units.
    `environment` says in JSON what measured figures depend on, beside the versions. `also` stands beside the rows.
    `tables` are the tables of CSV where those of the blocks are made for people only.
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
