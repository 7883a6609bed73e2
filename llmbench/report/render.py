"""Write a Document as a table, JSON, CSV or Markdown."""

from __future__ import annotations

import io
import re
import sys
from typing import Any, Literal, TextIO

import msgspec

from llmbench._version import __version__
from llmbench.printable import json_escaped, printable
from llmbench.report.document import Block, Command, Document, Table, View
from llmbench.report.fields import Cell, Field

Format = Literal["table", "json", "csv", "markdown"]


def render(document: Document, format: Format, stream: TextIO, view: View = View()) -> None:
    """Write the document to `stream` in the given format. `view`: the parts that a table and Markdown show."""
    if format == "json":
        stream.write(to_json(document))
    elif format == "csv":
        stream.write(_csv(document))
    elif format == "markdown":
        stream.write(_markdown(document, view))
    else:
        from llmbench.report.terminal import print_tables

        print_tables(document, stream, view)


def to_json(document: Document) -> str:
    """Return the JSON text: `{"schema": "llmbench.<command>/1", "inputs", "environment", …, "<rows>"}`.

    Values are in base units. An unknown value is null.
    """
    python = ".".join(map(str, sys.version_info[:3]))
    content = {
        "schema": f"llmbench.{document.command}/{document.version}",
        "inputs": document.inputs,
        "environment": {"llmbench": __version__, "python": python} | document.environment,
        **document.also,
        document.rows_key: document.rows,
    }
    try:
        return json_escaped(msgspec.json.format(msgspec.json.encode(content), indent=2).decode()) + "\n"
    except UnicodeEncodeError:  # `inputs` has a command-line argument that is not valid UTF-8
        import json

        return json.dumps(content, indent=2) + "\n"


def _csv(document: Document) -> str:
    """Return the tables as CSV: values in base units, with the names of the fields as headings.

    Each row also has the values of its block's `about`. CSV is one table: the first one, and all tables that have the
    same columns. A field whose JSON value is an object is left out.
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
        about = block.about
        if block.notes and not about and all(column.name != "notes" for column in columns):
            about = {"notes": block.notes}
        front = {name: value for name, value in about.items() if not isinstance(value, list)}
        behind = {name: value for name, value in about.items() if isinstance(value, list)}
        names = [*front, *(column.name for column in columns), *behind]
        if not header:
            writer.writerow(map(printable, header := names))
        if names != header:
            continue
        for row in rows:
            writer.writerow(map(_plain, (*front.values(), *row, *behind.values())))
    return text.getvalue()


def _flat(table: Table) -> tuple[list[Field[Any]], list[list[Any]]]:
    """Return the columns and rows for CSV. Columns whose values are JSON objects are left out."""
    rows = [[cell.value if isinstance(cell, Cell) else cell for cell in row] for row in table.rows]
    shown = [place for place in range(len(table.columns)) if not any(_nested(row[place]) for row in rows)]
    return [table.columns[place] for place in shown], [[row[place] for place in shown] for row in rows]


def _nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(part, dict) for part in value))


def _plain(value: Any) -> Any:
    """Return a value for CSV: "" for None, `true` or `false` for a bool, and the elements of a list joined by `; `."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return printable("; ".join("" if part is None else str(part) for part in value))
    return printable(value) if isinstance(value, str) else "" if value is None else value


def _markdown(document: Document, view: View) -> str:
    parts: list[str] = []
    for block, lines in zip(document.blocks, document.below(notes=view.notes), strict=True):
        above = map(_escaped, block.above(wide=view.wide))
        parts += [text if number else f"**{text}**" for number, text in enumerate(above)]
        if (shown := block.shown_table(wide=view.wide)) is not None:
            parts.append(_markdown_table(shown.for_people()))
        parts += map(_markdown_line, lines)
    return "\n\n".join(parts) + "\n"


def _markdown_line(line: str | Command) -> str:
    """Return a text, or a command in a block of code. A fence is longer than every row of backticks in the command."""
    if not isinstance(line, Command):
        return _escaped(line)
    fence = "`" * max(3, *(len(row) + 1 for row in re.findall("`+", line.text)), 3)
    return f"{_escaped(line.label)}\n\n{fence}sh\n{line.text}\n{fence}"


_MARKUP = re.compile(
    r"""
    \\(?=[!-/:-@\[-`{-~]|$)  # a backslash that would escape the next character
    |<(?=[A-Za-z/!?])  # an HTML tag
    |&(?=\#?\w+;)  # a character by its name
    |(?<=\])[(\[:]  # a link or a picture
    |(?<=:)/(?=/)|(?<=www)\.  # an address, which GitHub turns into a link
    """,
    re.VERBOSE | re.IGNORECASE,
)


def _escaped(text: str) -> str:
    """Return the text with a backslash where Markdown would begin an HTML tag, a link or a picture."""
    return _MARKUP.sub(r"\\\g<0>", text)


def _markdown_table(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(_escaped(cell).replace("|", "\\|") for cell in cells) + " |"

    head = table.headings()
    rule = ["---" if column.unit == "text" else "---:" for column in table.columns]
    rows = [line(cells) for cells in table.texts()]
    return "\n".join([line(head), line(rule), *rows])
