"""Format numbers with their units as texts for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

from llmbench.spec.base import plural as plural

Unit = Literal[
    "text",
    "count",
    "bytes",
    "kib",
    "mib",
    "gib",
    "gb_per_s",
    "percent",
    "flops",
    "flops_whole",
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
_BINARY = ((2**60, "EiB"), (2**50, "PiB"), (2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


_HEADING_UNITS: dict[Unit, str] = {
    "bytes": "B",
    "kib": "KiB",
    "mib": "MiB",
    "gib": "GiB",
    "gb_per_s": "GB/s",
    "flops": "FLOPs",
    "flops_whole": "FLOPs",
    "gflops_per_s": "GFLOP/s",
    "tflops_per_s": "TFLOP/s",
    "joules": "J",
    "seconds": "s",
    "us": "µs",
    "ms": "ms",
}
"""The text that names a unit in a heading. Headings do not name the other units."""


_SCALES: tuple[tuple[tuple[float, Unit], ...], ...] = (
    ((2**30, "gib"), (2**20, "mib"), (0, "kib")),
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
    if value is None:
        return UNKNOWN
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(element, unit) for element in value) or "none"
    return _SHOWN[unit](value)


def count(value: float) -> str:
    """Format an integer with thousands separators: 6,738,415,616."""
    return f"{value:,.0f}"


def size(value: float) -> str:
    """Format a number of bytes in the largest unit in which the number is at least one: 512.00 KiB, 12.55 GiB."""
    for scale, name in _BINARY:
        if abs(value) >= scale:
            return f"{value / scale:,.2f} {name}"
    return f"{value:,.0f} B"


def gib(value: float) -> str:
    """Format a number of bytes in GiB: with two decimals, or with three significant digits if below 0.1 GiB."""
    amount = value / 2**30
    if value and abs(amount) < 0.0995:
        return f"{amount:.3g}" if abs(amount) >= 1e-4 else f"{amount:.1e}"
    return f"{amount:,.2f}"


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
    text = f"{difference:+.1f}%" if not difference or abs(difference) >= 0.05 else f"{difference:+.1g}%"
    return signed(text)


def _number(value: float) -> str:
    if isinstance(value, int) or 9999.5 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:,.4g}"


_SHOWN: dict[Unit, Callable[[Any], str]] = {
    "text": str,
    "count": count,
    "bytes": count,
    "kib": lambda value: _number(float(f"{value / 2**10:.4g}")),
    "mib": lambda value: _number(float(f"{value / 2**20:.4g}")),
    "gib": gib,
    "gb_per_s": lambda value: count(value / 1e9) if value >= 1e11 else _number(float(f"{value / 1e9:.3g}")),
    "percent": percent,
    "flops": lambda value: si(value).strip(),
    "flops_whole": count,
    "gflops_per_s": lambda value: _number(value / 1e9),
    "tflops_per_s": lambda value: _number(value / 1e12),
    "joules": lambda value: _number(value),
    "ratio": lambda value: f"{value:.2f}×",
    "seconds": lambda value: f"{value:.3g}",
    "us": lambda value: _number(float(f"{1e6 * value:.4g}")),
    "ms": lambda value: _number(float(f"{1e3 * value:.4g}")),
    "number": _number,
    "scientific": lambda value: f"{value:.1e}",
    "parameters": billions,
}
