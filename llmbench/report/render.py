"""A Document as a table for a terminal, JSON, CSV or Markdown."""

from __future__ import annotations

import io
import sys
from typing import Any, Literal, TextIO

import msgspec

from llmbench._version import __version__
from llmbench.report.document import Block, Document, Table
from llmbench.report.fields import Cell, Field
from llmbench.report.units import heading, shown

Format = Literal["table", "json", "csv", "markdown"]
PIPED_WIDTH = 240
"""Columns of a table that goes to a file: wide enough that nothing is cut."""
INDENT = "  "
"""What stands before a table and the lines below it."""


def render(document: Document, format: Format, stream: TextIO) -> None:
    """Write the document to `stream`."""
    if format == "json":
        stream.write(to_json(document))
    elif format == "csv":
        stream.write(_csv(document))
    elif format == "markdown":
        stream.write(_markdown(document))
    else:
        _table(document, stream)


def to_json(document: Document) -> str:
    """`{"schema": "llmbench.<command>/1", "inputs", "environment", …, "<rows>"}`, base units, null for unknown."""
    python = ".".join(map(str, sys.version_info[:3]))
    content = {
        "schema": f"llmbench.{document.command}/{document.version}",
        "inputs": document.inputs,
        "environment": {"llmbench": __version__, "python": python} | document.environment,
        **document.also,
        document.rows_key: document.rows,
    }
    try:
        return msgspec.json.format(msgspec.json.encode(content), indent=2).decode() + "\n"
    except UnicodeEncodeError:  # an argument, repeated in the inputs, that is no UTF-8
        import json

        return json.dumps(content, indent=2) + "\n"


def _csv(document: Document) -> str:
    """The values of the tables in base units under the fields' names.

    What a table is about stands beside each of its rows. Tables with the same columns are one; between others is an
    empty line. Fields that are objects in JSON are left out.
    """
    import csv

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header: list[str] = []
    blocks = [Block(table=table) for table in document.tables] or document.blocks
    for block in blocks:
        if block.table is None:
            continue
        columns, rows = _flat(block.table)
        about = block.about or ({"spec": block.subject} if block.subject else {})
        if block.notes and not about and all(column.name != "notes" for column in columns):
            about = {"notes": block.notes}
        front = {name: value for name, value in about.items() if not isinstance(value, list)}
        behind = {name: value for name, value in about.items() if isinstance(value, list)}
        names = [*front, *(column.name for column in columns), *behind]
        if names != header:
            text.write("\n" if header else "")
            writer.writerow(header := names)
        for row in rows:
            writer.writerow(map(_plain, (*front.values(), *row, *behind.values())))
    return text.getvalue()


def _flat(table: Table) -> tuple[list[Field[Any]], list[list[Any]]]:
    """Columns and values for CSV, without fields that are objects."""
    rows = [[cell.value if isinstance(cell, Cell) else cell for cell in row] for row in table.rows]
    kept = [place for place in range(len(table.columns)) if not any(_nested(row[place]) for row in rows)]
    return [table.columns[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value))


def _plain(value: Any) -> Any:
    """A value as CSV has it: nothing for what is unknown, `true` and `false`, the elements of a list in one text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "; ".join("" if part is None else str(part) for part in value)
    return "" if value is None else value


def _markdown(document: Document) -> str:
    parts: list[str] = []
    for block in document.blocks:
        if block.headline:
            parts.append(f"**{block.headline}**")
        if block.table is not None:
            parts.append(_markdown_table(_for_people(block.table)))
        parts += _lines(block)
    return "\n\n".join(parts) + "\n"


def _lines(block: Block) -> list[str]:
    """The lines under a table for people."""
    return [*block.lines, *(f"note: {note}" for note in block.notes)]


def _markdown_table(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    head = _headings(table)
    rule = ["---" if column.unit == "text" else "---:" for column in table.columns]
    rows = [line(_cells(table, row)) for row in table.rows]
    return "\n".join([line(head), line(rule), *rows])


def _table(document: Document, stream: TextIO) -> None:
    from rich.console import Console

    piped = not stream.isatty()
    buffer = io.StringIO()
    console = Console(
        file=buffer if piped else stream,
        width=PIPED_WIDTH if piped else None,
        highlight=False,
        emoji=False,
        markup=False,
    )
    _print(document, console)
    if piped:  # rich pads every line to its width
        stream.writelines(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())


def _print(document: Document, console: Any) -> None:
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    room = console.width

    def below(text: str, style: str = "") -> None:
        """A line of its own, wrapped at the terminal's edge, and not padded up to it."""
        for line in Text(text, style=style).wrap(console, room - len(INDENT)):
            line.rstrip()
            console.print(Text(INDENT) + line)

    for index, block in enumerate(document.blocks):
        if index:
            console.print()
        if block.headline:
            console.print(Text(block.headline, style="bold"))
        if block.table is not None:
            if block.headline:
                console.print()
            table, left_out = _within(_for_people(block.table), room)
            rows = [_cells(table, row) for row in table.rows]
            widths = _widths(table, rows, room)
            narrow = widths is not None
            grid = RichTable(
                box=None,
                show_edge=False,
                pad_edge=False,
                padding=(0, 2, 0, 0),
                header_style="dim",
            )
            for place, (column, title) in enumerate(zip(table.columns, _headings(table), strict=True)):
                right = column.unit != "text"
                wraps = not right and (narrow or column.wraps)
                grid.add_column(
                    title.replace(" ", "\n") if right and narrow else title,
                    justify="right" if right else "left",
                    no_wrap=not wraps,
                    width=widths[place] if widths and wraps else None,
                    overflow="fold" if wraps else "ellipsis",
                )
            for number, cells in enumerate(rows):
                style = "bold" if table.total and number == len(rows) - 1 else None
                grid.add_row(*cells, style=style)
            if widths is not None:  # what cannot be narrower runs over the edge, and is not cut there
                console.width = max(room, sum(widths) + 2 * len(widths))
            console.print(Padding(grid, (0, 0, 0, len(INDENT))))
            console.width = room
            if left_out:
                below(f"too narrow for {', '.join(left_out)}", "dim")
        lines = _lines(block)
        if lines:
            if block.table is not None:
                console.print()
            for line in lines:
                below(line)


def _for_people(table: Table) -> Table:
    """Without fields that people do not see, and without sparse columns that have no value."""
    return _with(
        table,
        [
            place
            for place, column in enumerate(table.columns)
            if column.heading is not None and not (column.sparse and all(row[place] is None for row in table.rows))
        ],
    )


def _within(table: Table, room: int) -> tuple[Table, list[str]]:
    """Without as many spare columns as a terminal of that width has no room for; and their headings."""
    left_out: list[str] = []
    while True:
        widths = _widths(table, [_cells(table, row) for row in table.rows], room)
        spare = max(table.columns, key=lambda column: column.spare, default=None)
        if widths is None or sum(widths) + 2 * len(widths) <= room or spare is None or not spare.spare:
            return table, left_out
        left_out.append(spare.heading or "")
        table = _with(table, [place for place, column in enumerate(table.columns) if column is not spare])


def _with(table: Table, kept: list[int]) -> Table:
    """With the columns at these places alone."""
    return Table(
        columns=[table.columns[place] for place in kept],
        rows=[[row[place] for place in kept] for row in table.rows],
        total=table.total,
    )


def _widths(table: Table, rows: list[list[str]], terminal: int) -> list[int] | None:
    """The width of each column where the terminal is too narrow for the table as it is, so that headings and text must
    wrap: the widest texts give way first. Numbers are never broken, nor names or the words of a heading: where they
    alone are too wide, lines run over the edge."""
    from rich.cells import cell_len

    columns = list(zip(*rows, strict=True)) if rows else [()] * len(table.columns)
    whole: list[int] = []
    least: list[int] = []
    for column, title, cells in zip(table.columns, _headings(table), columns, strict=True):
        widest = max(map(cell_len, cells), default=0)
        words = [*title.split(), *(word for cell in cells for word in cell.split() if column.unbroken)]
        whole.append(max(widest, cell_len(title)))
        least.append(max(widest if column.unit != "text" else min(widest, 6), *map(cell_len, words), 0))
    room = terminal - 2 * len(whole)  # what is before the table, and between its columns
    if sum(whole) <= room:
        return None
    room = max(room, sum(least))
    widths = whole
    for limit in range(max(whole), -1, -1):
        widths = [
            max(low, min(wide, limit)) if column.unit == "text" else low
            for column, wide, low in zip(table.columns, whole, least, strict=True)
        ]
        if sum(widths) <= room:
            break
    return widths


def _headings(table: Table) -> list[str]:
    return [heading(column.heading or "", column.unit) for column in table.columns]


def _cells(table: Table, row: list[Any]) -> list[str]:
    cells = zip(row, table.columns, strict=True)
    return [cell.text if isinstance(cell, Cell) else shown(cell, column.unit) for cell, column in cells]
