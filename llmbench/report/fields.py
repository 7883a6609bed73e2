"""The fields of an answer's rows, each described once for JSON, CSV, Markdown, tables and the documentation."""

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

    `name` is the key in JSON and CSV. Values are base units, and the name says which (`peak_bytes`, `forward_s`). A dot
    in a name makes an object of JSON: `parameters.total`.
    `heading` is the heading of the column for people, to which the renderer adds the unit. None: people do not see it.
    `unit` says how people see the value.
    `value` gives the value of an item; by default it is the item's key or attribute `name`.
    `text` gives the text for people; by default, and where it gives None, it is the value in its unit.
    `description` says in the documentation what the value is.
    `in_json`: False for a column of a table that JSON does not have.
    `scale`: fields of the same scale get one unit, which suits their values (`fitted`).
    `wraps`: a text may go on in the next line. `unbroken`: its words are never broken, however narrow the terminal.
    `sparse`: people do not see the column where no row has a value.
    `spare`: the column gives way in a narrow terminal, the largest number first. 0: it never does.
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
        """The value of an item. A key that a mapping lacks is "": it does not apply, and its cell is empty."""
        if self.value is not None:
            return self.value(item)
        if isinstance(item, Mapping):
            return item.get(self.name, "")
        return attrgetter(self.name)(item)

    def cell(self, item: Item) -> Any:
        """The value of an item, with its text for people where that is another."""
        text = None if self.text is None else self.text(item)
        return self.of(item) if text is None else Cell(self.of(item), text)

    def shown(self, item: Item) -> str:
        """The text of an item for people."""
        text = None if self.text is None else self.text(item)
        return shown(self.of(item), self.unit) if text is None else text


def inside(path: str, *fields: Field[Any]) -> tuple[Field[Any], ...]:
    """The fields, whose values are attributes of the item's attribute `path` unless they have a function."""
    return tuple(
        msgspec.structs.replace(field, value=attrgetter(f"{path}.{field.name}")) if field.value is None else field
        for field in fields
    )


class Cell(NamedTuple):
    """A cell of a table that machines and people read differently."""

    value: Any
    text: str


def record(fields: Iterable[Field[Item]], item: Item) -> dict[str, Any]:
    """An item as JSON has it."""
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
    """Items as JSON has them."""
    return [record(fields, item) for item in items]


def fitted(fields: Iterable[Field[Item]], items: Sequence[Item]) -> list[Field[Item]]:
    """The fields, those of one scale in the unit that suits the values of them all."""
    fields = list(fields)
    values: dict[str, list[Any]] = {}
    for field in fields:
        if field.scale:
            values.setdefault(field.scale, []).extend(map(field.of, items))
    return [
        msgspec.structs.replace(field, unit=fitting(field.unit, values[field.scale])) if field.scale else field
        for field in fields
    ]
