"""Read a CSV file of published measurements into rows. A missing or empty cell is an unknown value."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.spec.reading import MOST_BYTES, read_text

Value = TypeVar("Value")
LARGEST = 10**9
"""The largest number that a cell with a count can have."""
SMALLEST_NUMBER, LARGEST_NUMBER = 1e-9, 1e15
"""The range of a number other than 0 in any other cell. The largest checkpoint has less than 1e13 bytes."""
MOST_CHARACTERS = 2000
"""The largest length of a cell. Only a cell with the JSON of a config can be longer."""
MOST_ROWS = 10_000
"""The largest number of rows of a file. A row can take some milliseconds."""
YES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class RefusedError(LLMBenchError):
    """llmbench gives no figure for a row. The message is the reason."""


class Row(msgspec.Struct, frozen=True):
    """One row of a file. line: its number in the file, from 1. cells: the texts of its cells by column."""

    line: int
    cells: Mapping[str, str]

    def text(self, column: str) -> str:
        """Return the text of a cell, or "" if the value is unknown. Raises RefusedError if the text is too long."""
        text = self.json(column)
        if len(text) > MOST_CHARACTERS:
            raise RefusedError(f"column `{column}`: has {len(text):,} characters, more than {MOST_CHARACTERS:,}")
        return text

    def json(self, column: str) -> str:
        """Return the text of a cell with the JSON of a config, which can be long, or "" if it is unknown."""
        return self.cells.get(column, "")

    def number(self, column: str) -> float | None:
        """Return the number of a cell, or None if the value is unknown.

        Raises RefusedError if it is not a number, or out of range (see `in_range`).
        """
        text = self.text(column)
        if not text:
            return None
        try:
            value = float(text) if text.isascii() else math.nan  # float reads digits of every script
        except ValueError:
            value = math.nan
        if math.isnan(value):
            raise RefusedError(f"column `{column}`: {text[:40]!r} is not a number")
        return in_range(value, text, f"column `{column}`: ")

    def count(self, column: str) -> int | None:
        """Return the whole number of a cell, or None if the value is unknown.

        Raises RefusedError if it is not a whole number from 0 to LARGEST.
        """
        value = self.number(column)
        if value is None:
            return None
        if value != int(value) or not 0 <= value <= LARGEST:
            raise RefusedError(
                f"column `{column}`: {self.text(column)[:40]!r} is not a whole number from 0 to {LARGEST:,}"
            )
        return int(value)

    def flag(self, column: str) -> bool | None:
        """Return whether a cell says yes, or None if the value is unknown. Raises RefusedError for another text."""
        text = self.text(column).lower()
        if text and text not in YES:
            raise RefusedError(f"column `{column}`: {text[:40]!r} is neither True nor False")
        return YES.get(text)

    def choice(self, column: str, choices: Mapping[str, Value]) -> Value:
        """Return the value that belongs to the text of a cell. Raises RefusedError if `choices` lacks the text."""
        text = self.text(column)
        if text not in choices:
            known = ", ".join(repr(choice) if choice else "empty" for choice in choices)
            raise RefusedError(f"column `{column}`: llmbench does not know {text[:60]!r}; it knows {known}")
        return choices[text]

    def size(self, column: str, default: int | None = None) -> int:
        """Return the whole number of a cell, which must be at least 1.

        default: the number if the value is unknown. None: raise RefusedError.
        """
        value = self.count(column)
        if value == 0:
            raise RefusedError(f"column `{column}`: must be at least 1, not 0")
        return _known(column, default if value is None else value)

    def needed(self, column: str) -> float:
        """Return the number of a cell. Raises RefusedError if the value is unknown."""
        return _known(column, self.number(column))


def in_range(value: float, text: str, where: str = "") -> float:
    """Return a number that a text writes.

    Raises RefusedError unless it is 0, or from SMALLEST_NUMBER to LARGEST_NUMBER.
    """
    if value and not SMALLEST_NUMBER <= value <= LARGEST_NUMBER:
        raise RefusedError(
            f"{where}{text[:40]!r} is out of range; a number is 0, or from {SMALLEST_NUMBER:g} to {LARGEST_NUMBER:g}"
        )
    return value


def _known(column: str, value: Value | None) -> Value:
    if value is None:
        raise RefusedError(f"column `{column}` is empty, and the figure depends on it")
    return value


def whole(digits: str, least: int = 0) -> int:
    """Return the number that the digits in a text write. Raises RefusedError unless it is from `least` to LARGEST."""
    number = int(digits[:20])
    if not least <= number <= LARGEST or len(digits) > 20:
        raise RefusedError(f"{digits[:40]} is not a number from {least} to {LARGEST:,}")
    return number


def read_rows(path: Path) -> tuple[list[str], list[Row]]:
    """Return the columns and the rows of a CSV file with one line of headings.

    Raises LLMBenchError if the file cannot be read, or has no headings.
    """
    csv.field_size_limit(MOST_BYTES)  # a long cell is a fault of its row, not of the whole file
    reader = csv.reader(io.StringIO(read_text(path).removeprefix("\ufeff"), newline=""))
    lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    if len(lines) > MOST_ROWS + 1:
        raise LLMBenchError(
            f"{path} has {len(lines) - 1:,} rows, and llmbench reads at most {MOST_ROWS:,}",
            hint="divide the file, and repeat its first line, which names the columns, in each part",
        )
    if not lines:
        raise LLMBenchError(f"{path} is empty", hint="the first line of a CSV file names its columns")
    columns = [name.strip() for name in lines[0][1]]
    return columns, [Row(line, _cells(columns, cells)) for line, cells in lines[1:]]


def _cells(columns: Iterable[str], cells: list[str]) -> dict[str, str]:
    """Return the cells by column. The first of two columns with one name counts, and cells without a column do not."""
    row: dict[str, str] = {}
    for name, cell in zip(columns, cells, strict=False):
        row.setdefault(name, cell.strip())
    return row


def first_known(*values: Any) -> Any:
    """Return the first value that is not None, or None."""
    return next((value for value in values if value is not None), None)
