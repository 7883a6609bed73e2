"""Print tables with rich. In a narrow terminal, wrap texts and leave out the columns marked `spare`."""

from __future__ import annotations

import io
import os
from shutil import get_terminal_size
from typing import Any, TextIO

from llmbench.report.document import Document, Table, View

PIPED_WIDTH = 240
"""The width of output to a pipe or a file, in characters. Every table fits into this width."""
INDENT = "  "
"""The spaces at the start of each line of a table and of the texts below the table."""
GAP = 2
"""The number of spaces between two columns."""


def print_tables(document: Document, stream: TextIO, view: View) -> None:
    """Write the answers, tables and texts of a document to `stream`, which may be a terminal."""
    from rich.console import Console

    piped = not stream.isatty()
    buffer = io.StringIO()
    console = Console(
        file=buffer if piped else stream,
        width=_width(stream),
        highlight=False,
        emoji=False,
        markup=False,
    )
    _print(document, console, view)
    if piped:  # rich fills each line with spaces up to the width, and rstrip removes them
        stream.writelines(line.rstrip() + "\n" for line in buffer.getvalue().splitlines())


def _width(stream: TextIO) -> int:
    """Return the width of the lines in characters: COLUMNS, or the width of the terminal, or PIPED_WIDTH."""
    if stream.isatty() or "COLUMNS" in os.environ:
        return get_terminal_size().columns
    return PIPED_WIDTH


def _print(document: Document, console: Any, view: View) -> None:
    from rich.text import Text

    for index, (block, lines) in enumerate(zip(document.blocks, document.below(notes=view.notes), strict=True)):
        if index:
            console.print()
        for number, text in enumerate(block.above):
            console.print(Text(text, style="" if number else "bold"))
        if block.table is not None:
            if block.above:
                console.print()
            _print_table(block.table.for_people(), console, wide=view.wide)
        if lines and block.table is not None:
            console.print()
        for line in lines:
            _print_line(line, console)


def _print_line(text: str, console: Any, style: str = "") -> None:
    """Print an indented text. Long lines wrap at the edge of the terminal. No line ends in spaces."""
    from rich.text import Text

    for line in Text(text, style=style).wrap(console, console.width - len(INDENT)):
        line.rstrip()
        console.print(Text(INDENT) + line)


def _print_table(table: Table, console: Any, *, wide: bool) -> None:
    from rich.padding import Padding
    from rich.table import Table as RichTable

    terminal = console.width
    if wide:
        console.width = 100_000
    table, left_out = _without_spare(table, console.width)
    widths = _widths(table, console.width)
    narrow = widths is not None
    grid = RichTable(box=None, show_edge=False, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for place, (column, heading) in enumerate(zip(table.columns, table.headings(), strict=True)):
        is_number = column.unit != "text"
        wraps = not is_number and (narrow or column.wraps)
        grid.add_column(
            heading.replace(" ", "\n") if is_number and narrow else heading,
            justify="right" if is_number else "left",
            no_wrap=not wraps,
            width=widths[place] if widths and wraps else None,
            overflow="fold" if wraps else "ellipsis",
        )
    for number, cells in enumerate(table.texts()):
        last = table.total and number == len(table.rows) - 1
        grid.add_row(*cells, style="bold" if last else None)
    if widths is not None:  # a line may be longer than the terminal, because numbers and names are never cut
        console.width = max(terminal, sum(widths) + GAP * len(widths))
    console.print(Padding(grid, (0, 0, 0, len(INDENT))))
    console.width = terminal
    if left_out:
        _print_line(f"`--wide` also shows: {', '.join(left_out)}", console, "dim")


def _without_spare(table: Table, terminal: int) -> tuple[Table, list[str]]:
    """Leave out spare columns until the table fits. Return the table and the headings of the missing columns.

    `terminal`: the width of the terminal in characters.
    """
    left_out: list[str] = []
    while True:
        widths = _widths(table, terminal)
        spare = max(table.columns, key=lambda column: column.spare, default=None)
        if widths is None or sum(widths) + GAP * len(widths) <= terminal or spare is None or not spare.spare:
            return table, left_out
        left_out.append(spare.heading or "")
        table = table.only([column is not spare for column in table.columns])


def _widths(table: Table, terminal: int) -> list[int] | None:
    """Return the width of each column in characters, or None if the table fits into the terminal as it is.

    The widest texts and headings wrap first. Numbers, names and words of headings are never split, so a line may be
    longer than the terminal. `terminal`: the width of the terminal in characters.
    """
    from rich.cells import cell_len

    rows = table.texts()
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(table.columns)
    whole: list[int] = []
    least: list[int] = []
    for column, heading, cells in zip(table.columns, table.headings(), columns, strict=True):
        widest = max(map(cell_len, cells), default=0)
        words = [*heading.split(), *(word for cell in cells for word in cell.split() if column.unbroken)]
        whole.append(max(widest, cell_len(heading)))
        least.append(max(widest if column.unit != "text" else min(widest, 6), *map(cell_len, words), 0))
    room = terminal - GAP * len(whole)  # n − 1 gaps between n columns, and an indent of the same width
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
