"""Format numbers with their units as texts for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from llmbench.spec.base import plural as plural
from llmbench.spec.base import word_list as word_list

Unit = Literal[
    "text",
    "count",
    "bytes",
    "kib",
    "mib",
    "gib",
    "gb_per_s",
    "percent",
    "error",
    "mflops",
    "gflops",
    "tflops",
    "pflops",
    "gflops_per_s",
    "tflops_per_s",
    "ratio",
    "joules",
    "seconds",
    "us",
    "ms",
    "number",
    "scientific",
    "parameters",
]
"""The unit in which a table shows a value. Stored values are in bytes, FLOPs, joules, seconds or fractions of one."""

UNKNOWN = "–"
_PREFIXES = (
    (1e24, "Y"),
    (1e21, "Z"),
    (1e18, "E"),
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
)
_BINARY = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


_HEADING_UNITS: dict[Unit, str] = {
    "bytes": "bytes",
    "kib": "KiB",
    "mib": "MiB",
    "gib": "GiB",
    "gb_per_s": "GB/s",
    "mflops": "MFLOPs",
    "gflops": "GFLOPs",
    "tflops": "TFLOPs",
    "pflops": "PFLOPs",
    "gflops_per_s": "GFLOP/s",
    "tflops_per_s": "TFLOP/s",
    "joules": "J",
    "seconds": "s",
    "us": "µs",
    "ms": "ms",
    "parameters": "billions",
}
"""The text that names a unit in a heading. Headings do not name the other units."""


_SCALES: tuple[tuple[tuple[float, Unit], ...], ...] = (
    ((2**30, "gib"), (2**20, "mib"), (0, "kib")),
    ((1e15, "pflops"), (1e12, "tflops"), (1e9, "gflops"), (0, "mflops")),
    ((1e12, "tflops_per_s"), (0, "gflops_per_s")),
    ((1e-3, "ms"), (0, "us")),
)
"""For each quantity, its units from the largest to the smallest. A number before a unit is the smallest value, in base
units, that a table shows in this unit."""


def fitting(unit: Unit, values: Iterable[Any]) -> Unit:
    """Return the unit for a column: the largest unit in which the geometric mean of the values is at least one.

    With this unit, both the smallest and the largest value have few digits. `unit`: any unit of the quantity.
    """
    amounts = [math.log2(value) for value in values if isinstance(value, (int, float)) and value > 0]
    kind = next((kind for kind in _SCALES if unit in (name for _, name in kind)), None)
    if kind is None or not amounts:
        return unit
    middle = sum(amounts) / len(amounts)
    return next(name for least, name in kind if not least or middle >= math.log2(least))


def heading(title: str, unit: Unit) -> str:
    """Return the heading of a column with its unit: `peak (GiB)`."""
    name = _HEADING_UNITS.get(unit)
    return f"{title} ({name})" if name else title


def shown(value: Any, unit: Unit) -> str:
    """Return the text of a value in `unit`. The text of an unknown value (None) is `–`."""
    return texts([value], unit)[0]


def texts(values: Sequence[Any], unit: Unit) -> list[str]:
    """Return the texts of the values of a column in `unit`. All numbers have the same number of decimals."""
    form = _FORMATS.get(unit)
    numbers = [part / form.scale for part in _numbers(values)] if form else []
    decimals = 0
    if form is not None:
        decimals = _decimals(numbers) if form.decimals is None else form.decimals

    def text(value: Any) -> str:
        if value is None:
            return UNKNOWN
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, (list, tuple)):
            return ", ".join(map(text, value)) or "none"
        if isinstance(value, str) or form is None:
            return f"{value:.1e}" if unit == "scientific" and isinstance(value, float) else str(value)
        amount = value / form.scale
        least = 10**-decimals
        if 0 < abs(amount) < least / 2:
            sign = "−" if amount < 0 else "+" if form.sign else ""
            return f"{sign}<{least:.{decimals}f}{form.suffix}"
        return signed(f"{amount:{'+' if form.sign else ''},.{decimals}f}{form.suffix}")

    return [text(value) for value in values]


def _numbers(values: Iterable[Any]) -> Iterator[float]:
    """Return the numbers among the values and in lists among the values."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _numbers(value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield value


def _decimals(numbers: Sequence[float]) -> int:
    """Return the number of decimals, from 0 to 3, for a column of numbers.

    The largest number has from three to six significant digits. The smallest number has three if two decimals are
    enough for them, else two. Whole numbers have no decimals.
    """
    if all(number == int(number) for number in numbers if math.isfinite(number)):
        return 0
    sizes = [math.floor(math.log10(abs(number))) for number in numbers if number and math.isfinite(number)]
    for_smallest = max(min(2, 2 - min(sizes)), 1 - min(sizes))
    return min(3, max(0, 2 - max(sizes), min(for_smallest, 5 - max(sizes))))


def count(value: float) -> str:
    """Format an integer with thousands separators: 6,738,415,616."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Format a number of bytes in GiB, or in a smaller unit in which the number is at least one: 512.00 KiB."""
    for scale, name in _BINARY:
        if abs(value) >= scale:
            return f"{value / scale:,.2f} {name}"
    return f"{value:,.0f} B"


def si(value: float, digits: int = 2) -> str:
    """Format a number with an SI prefix: 1.85 T, 6.74 G."""
    for scale, name in _PREFIXES:
        if abs(value) >= scale:
            return f"{value / scale:,.{digits}f} {name}"
    return f"{value:,.{digits}f} " if value % 1 else f"{value:,.0f} "


def billions(value: float) -> str:
    """Format a number of parameters: 6.74 B, 494.0 M."""
    if abs(value) >= 1e12:
        return f"{value / 1e12:,.2f} T"
    if abs(value) >= 1e9:
        return f"{value / 1e9:,.2f} B"
    return f"{value / 1e6:,.1f} M"


def duration(seconds: float) -> str:
    """Format a time of a training in days, hours, minutes or seconds: 2.9 days."""
    for scale, name, least in ((86400, "days", 2), (3600, "hours", 2), (60, "minutes", 2)):
        if seconds >= least * scale:
            return f"{seconds / scale:,.1f} {name}"
    return f"{seconds:,.1f} seconds"


def fixed(value: float, decimals: int) -> str:
    """Return the number with this many decimals, and from a million on as a power of ten, such as 8.76e+34."""
    return f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.2e}"


def percent(value: float) -> str:
    """Format a fraction in per cent: 0.044 is 4.4%."""
    return signed(f"{100 * value:.1f}%")


def signed(text: str) -> str:
    """Replace the hyphen in a formatted number with a minus sign."""
    return text.replace("-", "−")


def change(value: float, reference: float) -> str:
    """Format the relative difference (value − reference) / reference with its sign: −4.4%."""
    if not reference:
        return UNKNOWN
    difference = 100 * (value - reference) / reference
    if difference and abs(difference) < 0.001:
        return f"{'+' if difference > 0 else '−'}<0.001%"
    text = f"{difference:+.1f}%" if not difference or abs(difference) >= 0.05 else f"{difference:+.1g}%"
    return signed(text)


class _Format(NamedTuple):
    """The format of the numbers of a unit.

    `scale`: the size of the unit in base units. `decimals`: None means as many as the column needs. `suffix`: the text
    after each number. `sign`: whether a number above 0 has a plus sign.
    """

    scale: float
    decimals: int | None = None
    suffix: str = ""
    sign: bool = False


_FORMATS: dict[Unit, _Format] = {
    "count": _Format(1, 0),
    "bytes": _Format(1, 0),
    "kib": _Format(2**10),
    "mib": _Format(2**20),
    "gib": _Format(2**30, 2),
    "gb_per_s": _Format(1e9),
    "percent": _Format(0.01, 1, "%"),
    "error": _Format(0.01, 1, "%", sign=True),
    "mflops": _Format(1e6),
    "gflops": _Format(1e9),
    "tflops": _Format(1e12),
    "pflops": _Format(1e15),
    "gflops_per_s": _Format(1e9),
    "tflops_per_s": _Format(1e12),
    "ratio": _Format(1, 2, "×"),
    "joules": _Format(1),
    "seconds": _Format(1),
    "us": _Format(1e-6),
    "ms": _Format(1e-3),
    "number": _Format(1),
    "parameters": _Format(1e9, 2),
}
"""The formats of the units of numbers."""
