"""`Field` describes one field of a row. JSON, CSV, Markdown, tables and the documentation use this description."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from llmbench.report.units import Unit, fitting, shown

__all__ = ["Cell", "Field", "fitted", "inside", "record", "records"]

Item = TypeVar("Item", contravariant=True)


class Field(msgspec.Struct, Generic[Item], frozen=True):
    """One field of the rows of an answer.

    `name`: the key in JSON and CSV. Values are in base units, and the name ends in the unit (`peak_bytes`,
        `forward_s`). A name with a dot is a key in a nested JSON object: `parameters.total`.
    `heading`: the heading of the column in a table, without the unit. None: tables do not show the field.
    `unit`: the unit in which tables show the value.
    `value`: a function that returns the value of an item. None: the value is the item's key or attribute `name`.
    `text`: a function that returns the text that tables show for an item. If `text` is None or returns None, tables
        show the value in `unit`.
    `description`: the meaning of the value, for the documentation.
    `in_json`: whether JSON has the field. False: only tables have the field.
    `scale`: the name of a group of fields. `fitted` gives all fields of a group the same unit.
    `wraps`: whether a long text may continue on the next line.
    `sparse`: whether tables leave out the column if no row has a value.
    `spare`: a rank above 0 if a narrow terminal may leave out the column. The column with the highest rank is left out
        first.
    `repeats`: whether each part of the table has the column, if the table is so wide that it is shown in parts, one
        below the other. A table without such a column is never shown in parts.
    """

    name: str
    heading: str | None = None
    unit: Unit = "text"
    value: Callable[[Item], Any] | None = None
    text: Callable[[Item], str | None] | None = None
    description: str = ""
    in_json: bool = True
    scale: str = ""
    wraps: bool = False
    sparse: bool = False
    spare: int = 0
    repeats: bool = False

    def value_of(self, item: Item) -> Any:
        """Return the value of an item. Return "" for a mapping without the key, because the field does not apply."""
        if self.value is not None:
            return self.value(item)
        if isinstance(item, Mapping):
            return item.get(self.name, "")
        return attrgetter(self.name)(item)

    def cell(self, item: Item) -> Any:
        """Return the value of an item. If `text` returns a text for the item, return a Cell with value and text."""
        text = None if self.text is None else self.text(item)
        return self.value_of(item) if text is None else Cell(self.value_of(item), text)

    def shown(self, item: Item) -> str:
        """Return the text that people see for an item."""
        text = None if self.text is None else self.text(item)
        return shown(self.value_of(item), self.unit) if text is None else text


def inside(path: str, *fields: Field[Any]) -> tuple[Field[Any], ...]:
    """Return copies of the fields. A copy reads its value from the object `item.<path>` instead of `item`.

    A field that has a function `value` stays as it is.
    """
    return tuple(
        msgspec.structs.replace(field, value=attrgetter(f"{path}.{field.name}")) if field.value is None else field
        for field in fields
    )


class Cell(NamedTuple):
    """A table cell with two contents. `value`: the value for CSV. `text`: the text that people see."""

    value: Any
    text: str


def record(fields: Iterable[Field[Item]], item: Item) -> dict[str, Any]:
    """Return the JSON object of an item."""
    row: dict[str, Any] = {}
    for field in fields:
        if field.in_json:
            *path, name = field.name.split(".")
            place = row
            for key in path:
                place = place.setdefault(key, {})
            place[name] = field.value_of(item)
    return row


def records(fields: Sequence[Field[Item]], items: Iterable[Item]) -> list[dict[str, Any]]:
    """Return the JSON objects of several items."""
    return [record(fields, item) for item in items]


def fitted(fields: Iterable[Field[Item]], items: Sequence[Item]) -> list[Field[Item]]:
    """Return the fields with units that suit the values of the items. Fields of the same `scale` get the same unit."""
    fields = list(fields)
    values: dict[str, list[Any]] = {}
    for field in fields:
        if field.scale:
            values.setdefault(field.scale, []).extend(map(field.value_of, items))
    return [
        msgspec.structs.replace(field, unit=fitting(field.unit, values[field.scale])) if field.scale else field
        for field in fields
    ]
