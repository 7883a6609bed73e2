"""Checks of single fields: a number must be positive, must not be negative, or must divide another number."""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec

from llmbench.spec.base import Fault, Part


def positive(part: Part, *fields: str) -> Iterator[Fault]:
    """Yield a fault for each number in these fields that is not above zero. A field holds a number or a list of
    numbers."""
    for field, value in _numbers(part, fields):
        if not value > 0:
            yield Fault(field, f"{value} is not above 0", default_hint(part, field))


def not_negative(part: Part, *fields: str) -> Iterator[Fault]:
    """Yield a fault for each number in these fields that is below zero. A field can be a list of numbers."""
    for field, value in _numbers(part, fields):
        if not value >= 0:
            yield Fault(field, f"{value} is below 0", default_hint(part, field))


def divides(part: Part, field: str, whole_field: str) -> Iterator[Fault]:
    """Yield a fault if the number in `field` does not divide the number in `whole_field`."""
    value, whole = getattr(part, field), getattr(part, whole_field)
    if whole % value:
        yield Fault(field, f"{value} does not divide {whole_field} {whole}", nearest_divisors(value, whole))


def nearest_divisors(value: int, whole: int) -> str:
    """Return a hint that names the nearest divisors of `whole` below and above `value`."""
    small = [n for n in range(1, math.isqrt(whole) + 1) if whole % n == 0]
    every = sorted({*small, *(whole // n for n in small)})
    near = [n for n in every if n < value][-1:] + [n for n in every if n > value][:1]
    return f"the nearest {'divisor is' if len(near) == 1 else 'divisors are'} {' and '.join(map(str, near))}"


def _numbers(part: Part, fields: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    for field in fields:
        value = getattr(part, field)
        for number in value if isinstance(value, tuple) else () if value is None else (value,):
            yield field, number


def default_hint(part: Part, field: str) -> str | None:
    """Return a hint that states the default value of the field, or None for a required field."""
    default = next(known.default for known in msgspec.structs.fields(part) if known.name == field)
    if default is msgspec.NODEFAULT:
        return None
    return "this field may be left out" if default in (None, ()) else f"the default of this field is {default}"
