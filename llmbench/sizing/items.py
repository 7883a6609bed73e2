"""Read the text of an option that has several items: `tp=8,sp,zero=1`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from math import inf, isfinite
from typing import Any

from llmbench.errors import LLMBenchError, suggestion

Reader = Callable[[str], Any]
"""A function that returns the value of an item from its text. It raises ValueError, whose message says what the item
must be, such as `needs a whole number`."""


def read_items(
    text: str,
    what: str,
    readers: Mapping[str, Reader],
    *,
    error: type[LLMBenchError],
    example: str,
    other_names: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the values of the items in a text such as `tp=8,sp`. An item without a value is read as an empty text.

    what: name of the option, with which messages begin. readers: the items that are possible. example: a text for the
        hint. other_names: words that users take for an item, and what they can write instead, with `{}` for the value.

    Raises `error` if an item is unknown, is given twice, or has a wrong value.
    """
    values: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in readers:
            meant = (other_names or {}).get(key.lower().replace("-", "_")) or suggestion(key, readers)
            near = f"did you mean `{_with_value(meant, value[:40])}`? " if meant else ""
            raise error(
                f"{what}: unknown item `{key[:40]}`", hint=f"{near}choose from {', '.join(readers)}, like {example}"
            )
        if key in values:
            raise error(f"{what}: `{key}` is given twice")
        try:
            values[key] = readers[key](value)
        except ValueError as problem:
            raise error(f"{what} {key}: {problem}, not `{value[:40]}`", hint=f"like {example}") from None
    return values


def _with_value(meant: str, value: str) -> str:
    """Return the item that the user may mean, with the value that the user gave."""
    if "{}" in meant:
        return meant.format(value or "8")
    return f"{meant}={value}" if value and "=" not in meant else meant


def whole_number(text: str) -> int:
    """Read a whole number of up to seven digits."""
    if not (text.isascii() and text.isdigit() and len(text) < 8):
        raise ValueError("needs a whole number")
    return int(text)


def flag(text: str) -> bool:
    """Read an item that is on or off. Without a value, it is on."""
    if text not in ("", "0", "1", "true", "false"):
        raise ValueError("must be on or off")
    return text in ("", "1", "true")


def decimal(text: str) -> float:
    """Read a finite number such as 1.2, -3 or 1e6, of ASCII digits and without the underscores that Python accepts."""
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", text, re.ASCII | re.IGNORECASE):
        raise ValueError("needs a number")
    number = float(text)
    if not isfinite(number):
        raise ValueError("needs a number")
    return number


_SCALES = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


def amount(text: str) -> float:
    """Read a positive number such as 512000, 512,000, 512k, 300B or 1.5T. Commas can only separate thousands."""
    whole = text.strip().lower()
    scale = _SCALES.get(whole[-1:], 1.0)
    digits = whole[:-1] if scale > 1 else whole
    number = decimal(without_commas(digits)) * scale
    if not 0 < number < inf:
        raise ValueError("needs a positive number")
    return number


def without_commas(text: str) -> str:
    """Return the text of a number without the commas between groups of three digits: 1,234.5 becomes 1234.5.

    Raises ValueError for other commas: 1,5 is 1.5 in some countries, and 15 if commas are ignored.
    """
    if "," in text and not re.fullmatch(r"[0-9]{1,3}(,[0-9]{3})+(?![0-9])[^,]*", text):
        raise ValueError("may have a comma only between groups of three digits, as in 1,234,567")
    return text.replace(",", "")


def several(*names: str) -> Reader:
    """Return a reader for one or several names, joined by `+`."""
    read = choice(*names)
    return lambda text: tuple(read(name) for name in text.split("+"))


def choice(*names: str) -> Reader:
    """Return a reader for one of several names."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return text

    return read
