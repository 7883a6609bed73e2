"""Print tables. No line is longer than the terminal: texts wrap, and columns that do not fit are left out."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from shutil import get_terminal_size
from typing import Any, Literal, TextIO

import msgspec

from llmbench.report.document import Command, Document, Table, View
from llmbench.report.fields import Field

__all__ = ["print_tables"]

PIPED_WIDTH = 240
"""The width of output to a pipe or a file, in characters. Every table fits into this width."""
INDENT = "  "
"""The spaces at the start of each line of a table and of the texts below the table."""
GAP = 2
"""The number of spaces between two columns."""
NARROW_TEXT = 20
"""A column of wrapped texts is at least this wide, in characters, unless no other column can be left out."""
MOST_NAMES = 8
"""The largest number of columns that are named where a table leaves them out."""
MOST_LINES = 3
"""The largest number of lines of a wrapped text, as long as a column can be left out to give it more room."""

Style = Literal["", "bold", "dim"]
_CODES: dict[Style, str] = {"": "", "bold": "\x1b[1m", "dim": "\x1b[2m"}


def print_tables(document: Document, stream: TextIO, view: View) -> None:
    """Write the answers, tables and texts of a document to `stream`, which may be a terminal."""
    width, styled = _width(stream), _has_styles(stream)
    for line, style in _document_lines(document, width, view):
        text = line.rstrip()
        stream.write(f"{_CODES[style]}{text}\x1b[0m\n" if styled and style and text else f"{text}\n")


def _width(stream: TextIO) -> int:
    """Return the width of the lines in characters: COLUMNS, or the width of the terminal, or PIPED_WIDTH."""
    if stream.isatty() or "COLUMNS" in os.environ:
        return get_terminal_size().columns
    return PIPED_WIDTH


def _has_styles(stream: TextIO) -> bool:
    """Return whether `stream` is a terminal that shows bold and dim text."""
    if not stream.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        return False
    if sys.platform == "win32":
        os.system("")  # switches on the escape sequences of a Windows console
    return True


def _document_lines(document: Document, width: int, view: View) -> Iterator[tuple[str, Style]]:
    """Return the lines of a document, each with its style."""
    for index, (block, below) in enumerate(zip(document.blocks, document.below(notes=view.notes), strict=True)):
        if index:
            yield "", ""
        above = block.above(wide=view.wide)
        for number, text in enumerate(above):
            for line in _wrapped(text, width):
                yield line, "" if number else "bold"
        if (shown := block.shown_table(wide=view.wide)) is not None:
            if above:
                yield "", ""
            yield from _table_lines(shown, width - len(INDENT), wide=view.wide)
            if below:
                yield "", ""
        for part in below:
            for line in _lines_of(part, width - len(INDENT)):
                yield INDENT + line, ""


def _table_lines(whole: Table, width: int, *, wide: bool) -> Iterator[tuple[str, Style]]:
    """Return the lines of a table in `width` columns of characters. `wide`: show all columns, however long the lines.

    If the table does not fit, and it has another form for narrow terminals, that form is shown. A table with columns
    that repeat is shown in parts instead, if the columns that are not spare (`wide`: all columns) do not fit.
    """
    table = whole.for_people()
    rows, headings = table.texts(), table.headings()
    places = list(range(len(headings)))
    widths = [max(map(_length, column)) for column in zip(headings, *rows, strict=True)]
    if not wide and _total(widths) > width:
        places, widths = _fitted(table.columns, headings, rows, width)
        if whole.narrow is not None and len(places) < len(headings):
            yield from _table_lines(whole.narrow, width, wide=wide)
            return
    shown = [place for place in range(len(headings)) if wide or not table.columns[place].spare]
    fits = _total(widths) <= width if wide else set(shown) <= set(places)
    parts = [] if fits else _parts(table.columns, headings, rows, shown, width)
    if len(parts) > 1:
        for number, part in enumerate(parts):
            if number:
                yield "", ""
            yield from _table_lines(_part(table, part), width, wide=False)
        yield from _left_out(table.columns, shown, width)
        return

    def lines(cells: Sequence[str], style: Style, *, at_the_end: bool = False) -> Iterator[tuple[str, Style]]:
        parts = [_wrapped(cells[place], room) for place, room in zip(places, widths, strict=True)]
        height = max(map(len, parts), default=0)
        for number in range(height):
            texts = []
            for place, part, room in zip(places, parts, widths, strict=True):
                row = number - (height - len(part)) if at_the_end else number
                text = part[row] if 0 <= row < len(part) else ""
                padding = " " * (room - _length(text))
                texts.append(text + padding if table.columns[place].unit == "text" else padding + text)
            yield INDENT + (" " * GAP).join(texts), style

    yield from lines(headings, "dim", at_the_end=True)
    for cells in rows:
        yield from lines(cells, "bold" if table.total and cells is rows[-1] else "")
    yield from _left_out(table.columns, places, width)


def _left_out(columns: Sequence[Field[Any]], places: Sequence[int], width: int) -> Iterator[tuple[str, Style]]:
    """Return the line that names the columns that are left out. `places`: the places of the others."""
    names = [column.heading or "" for place, column in enumerate(columns) if place not in places]
    more = f", and {len(names) - MOST_NAMES} more columns" if len(names) > MOST_NAMES + 1 else ""
    if names:
        named = ", ".join(names[:MOST_NAMES] if more else names)
        for line in _wrapped(f"`--wide` also shows: {named}{more}", width):
            yield INDENT + line, "dim"


def _parts(
    columns: Sequence[Field[Any]],
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    shown: Sequence[int],
    width: int,
) -> list[list[int]]:
    """Return the places of the columns of each part of a table that shows the columns at the places `shown`.

    A part has the columns that repeat, and as many others as fit without narrow texts. The list is empty if no column
    repeats.
    """
    repeated = [place for place in shown if columns[place].repeats]
    if not repeated:
        return []
    parts = [repeated]
    for place in shown:
        if place in repeated:
            continue
        part = [*parts[-1], place]
        widths = _shares([(columns[at], headings[at], [row[at] for row in rows]) for at in part], width, loose=False)
        if _total(widths) <= width or parts[-1] == repeated:
            parts[-1] = part
        else:
            parts.append([*repeated, place])
    return parts


def _part(table: Table, places: Sequence[int]) -> Table:
    """Return the part of a table with the columns at these places, none of which is left out."""
    part = table.only([place in places for place in range(len(table.columns))])
    part.columns = [msgspec.structs.replace(column, spare=0) for column in part.columns]
    return part


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _fitted(
    columns: Sequence[Field[Any]], headings: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> tuple[list[int], list[int]]:
    """Return the places of the columns that a table of `width` characters shows, and the width of each of them.

    First, headings of numbers and texts marked `wraps` wrap. If that is not enough, the spare columns are left out: the
    one with the highest rank first. Then all texts wrap, and columns are left out from the right until two remain.
    """
    places = list(range(len(columns)))
    cells = [[row[place] for row in rows] for place in places]
    while True:
        spare = max(places, key=lambda place: columns[place].spare)
        for loose in (False, True) if not columns[spare].spare else (False,):
            widths = _shares([(columns[place], headings[place], cells[place]) for place in places], width, loose=loose)
            if _total(widths) <= width and not (columns[spare].spare and _too_tall(cells, places, widths)):
                return places, widths
        if not columns[spare].spare:
            if len(places) <= 2:  # only words that are longer than the line are left: they break
                texts = [number for number, place in enumerate(places) if columns[place].unit == "text"]
                longest = max(texts, key=lambda number: widths[number], default=0)
                widths[longest] = max(1, widths[longest] + width - _total(widths))
                return places, widths
            spare = places[-1]
        places.remove(spare)


def _too_tall(cells: Sequence[Sequence[str]], places: Sequence[int], widths: Sequence[int]) -> bool:
    """Return whether a text needs more than MOST_LINES lines."""
    return any(
        len(_wrapped(text, room)) > MOST_LINES
        for place, room in zip(places, widths, strict=True)
        for text in cells[place]
    )


def _shares(columns: Sequence[tuple[Field[Any], str, Sequence[str]]], width: int, *, loose: bool) -> list[int]:
    """Return the width of each column so that the table has `width` characters, or the least widths if it cannot.

    `columns`: the field, the heading and the texts of each column. `loose`: whether all texts may wrap, down to their
    longest word.
    """
    whole, least = [], []
    for column, heading, texts in columns:
        widest = max(map(_length, texts), default=0)
        words = [_length(word) for word in heading.split()]
        if column.unit == "text" and (loose or column.wraps):
            words += [_length(word) for text in texts for word in text.split()]
            words.append(0 if loose else min(widest, NARROW_TEXT))
        else:
            words.append(widest)
        whole.append(max(widest, _length(heading)))
        least.append(max(words, default=0))
    widest = max(whole)

    def widths(numbers: int, texts: int) -> list[int]:
        """Return the widths of the columns. `numbers`, `texts`: the largest width of a column of numbers or texts."""
        limits = [texts if column.unit == "text" else numbers for column, _, _ in columns]
        return [max(low, min(high, limit)) for low, high, limit in zip(least, whole, limits, strict=True)]

    headings_wrap = (widths(limit, widest) for limit in range(widest, 0, -1))
    texts_wrap = (widths(0, limit) for limit in range(widest, 0, -1))
    return next((shares for shares in chain(headings_wrap, texts_wrap) if _total(shares) <= width), least)


def _lines_of(text: str | Command, width: int) -> list[str]:
    """Return the lines of a text, or of a command with its label."""
    if not isinstance(text, Command):
        return _wrapped(text, width)
    return _wrapped(text.label, width) + [INDENT + line for line in _continued(text.text, width - len(INDENT))]


def _continued(command: str, width: int) -> list[str]:
    """Return the lines of a command that a shell reads as one: all but the last end with a backslash.

    Lines break at spaces outside quotes. A word of the shell that is longer than a line stays whole.
    """
    words = re.findall(r"(?:[^\s'\"\\]|\\.|'[^']*'|\"(?:\\.|[^\"\\])*\"|['\"\\])+", command)
    lines, current = [], ""
    for place, word in enumerate(words):
        # An option stays beside its value.
        last = word if word[0] != "-" or place + 1 == len(words) else f"{word} {words[place + 1]}"
        if current and _length(f"{current} {last}") > width - len(_CONTINUED):
            lines.append(current + _CONTINUED)
            current = INDENT + word
        else:
            current = f"{current} {word}" if current else word
    return [*lines, current]


_CONTINUED = " \\"
"""The end of a line that continues on the next one."""


def _wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text. A line that is longer than `width` characters continues on the next line.

    Lines break at spaces, but not inside a part of `_words`. A word that is longer than a line breaks after a
    punctuation mark, or anywhere.
    """
    lines: list[str] = []
    width = max(1, width)
    for line in text.split("\n"):
        if _length(line) <= width:
            lines.append(line)
            continue
        start = line[: len(line) - len(line.lstrip())]
        current = ""
        for word in _words(line, width - len(start)):
            if current and _length(f"{current} {word}") <= width:
                current += f" {word}"
                continue
            if current:
                lines.append(current)
            current = start + word
            while _length(current) > width:
                marks = [match.end() for match in re.finditer(r"[-/_,=:]|\.(?!\d)", current)]
                cut = max((mark for mark in marks if mark <= width), default=width)
                lines.append(current[:cut])
                current = current[cut:]
        lines.append(current)
    return lines


def _words(line: str, width: int) -> Iterator[str]:
    """Yield the parts of a line that stay whole: words, and longer parts of at most `width` characters.

    A text between backticks is one part, and so is an item of a list such as `32 layers · hidden 4096`, with its dot.
    """
    *items, last = line.strip().split(" · ")
    for item in [*(f"{item} ·" for item in items), last]:
        whole = item if _length(item) <= width else item.removesuffix(" ·")  # the end of the line replaces the dot
        if items and _length(whole) <= width:
            yield whole
            continue
        for word in re.findall(r"[^\s`]*`[^`]*`[^\s`]*|\S+(?: ·$)?", item):
            yield from [word] if _length(word) <= width else word.split()


def _length(text: str) -> int:
    """Return the number of columns that a text takes in a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(mark) else 2 if east_asian_width(mark) in "WF" else 1 for mark in text)
