"""`Field` describes one field of a row once; JSON, CSV, Markdown, tables and documentation all use it."""

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

    name: the key in JSON and CSV. Values are in base units, and the name says the unit (`peak_bytes`, `forward_s`). A
        name with a dot is a key in a nested JSON object: `parameters.total`.
    heading: the heading of the column in a table, without its unit. None: tables do not show the field.
    unit: the unit in which tables show the value.
    value: a function that returns the value of an item. None: the item's key or attribute with the field's name.
    text: a function that returns the text that tables show. None, or a result of None: tables show value and unit.
    description: the meaning of the value, for the documentation.
    in_json: whether JSON has the field. False: only tables have it.
    scale: a name for a group of fields that are shown in the same unit (`fitted`).
    wraps: whether a text may continue in the next line. unbroken: words are never split, even in a narrow terminal.
    sparse: tables leave out the column if no row has a value.
    spare: a narrow terminal leaves out columns with a number above 0, the largest number first.
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
    unbroken: bool = False
    sparse: bool = False
    spare: int = 0

    def of(self, item: Item) -> Any:
        """The value of an item. If a mapping has no such key, the field does not apply, and the value is ""."""
        if self.value is not None:
            return self.value(item)
        if isinstance(item, Mapping):
            return item.get(self.name, "")
        return attrgetter(self.name)(item)

    def cell(self, item: Item) -> Any:
        """The value of an item, and also the text for people if `text` gives one."""
        text = None if self.text is None else self.text(item)
        return self.of(item) if text is None else Cell(self.of(item), text)

    def shown(self, item: Item) -> str:
        """The text that people see for an item."""
        text = None if self.text is None else self.text(item)
        return shown(self.of(item), self.unit) if text is None else text


def inside(path: str, *fields: Field[Any]) -> tuple[Field[Any], ...]:
    """The fields, changed so that each reads its value from the item's attribute `path`.

    Fields that have a function `value` stay as they are.
    """
    return tuple(
        msgspec.structs.replace(field, value=attrgetter(f"{path}.{field.name}")) if field.value is None else field
        for field in fields
    )


class Cell(NamedTuple):
    """A cell of a table whose value (for CSV) differs from the text that people see."""

    value: Any
    text: str


def record(fields: Iterable[Field[Item]], item: Item) -> dict[str, Any]:
    """The JSON object of an item."""
    row: dict[str, Any] = {}
    for field in fields:
        if field.in_json:
            *path, name = field.name.split(".")
            place = row
            for key in path:
                place = place.setdefault(key, {})
            place[name] = field.of(item)
    return row


def records(fields: Sequence[Field[Item]], items: Iterable[Item]) -> list[dict[str, Any]]:
    """The JSON objects of several items."""
    return [record(fields, item) for item in items]


def fitted(fields: Iterable[Field[Item]], items: Sequence[Item]) -> list[Field[Item]]:
    """The fields with their units adapted to the values: fields with the same `scale` get the same unit."""
    fields = list(fields)
    values: dict[str, list[Any]] = {}
    for field in fields:
        if field.scale:
            values.setdefault(field.scale, []).extend(map(field.of, items))
    return [
        msgspec.structs.replace(field, unit=fitting(field.unit, values[field.scale])) if field.scale else field
        for field in fields
    ]
