"""Read the answer of a student: a number with or without a unit."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import Literal, assert_never

from llmbench.errors import LLMBenchError
from llmbench.sizing.items import without_commas

__all__ = ["EXAMPLES", "Kind", "parse_answer"]

Kind = Literal["count", "number", "bytes", "share", "days", "seconds", "flops"]
"""What an answer counts: parameters (`count`) or a few things such as users (`number`), bytes, a share, and so on. The
base units are ones, bytes, fractions of one, days, seconds and FLOPs."""

EXAMPLES: dict[Kind, tuple[str, str]] = {
    "count": ("124439808 or 124,439,808", "124M, 0.124B or 1.24e8"),
    "number": ("37", "1,024"),
    "bytes": ("150994944 or 144 MiB", "151 MB or 1.51e8"),
    "share": ("12.5%", "0.125"),
    "days": ("120", "120 days, 2880 h or 0.33 years"),
    "seconds": ("0.0042", "4.2 ms or 4200 us"),
    "flops": ("2.92e11", "292G or 292 GFLOPs"),
}
"""Answers of each kind, for messages: exact ones, and further ones that may be rounded."""

_PREFIXES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15, "e": 10**18}
_COUNTS = {**_PREFIXES, "b": 10**9, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_BYTES = {
    "": 1,
    "byte": 1,
    "bytes": 1,
    **{f"{prefix}b": size for prefix, size in _PREFIXES.items()},
    **{f"{prefix}ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
_SECONDS = {
    "us": Fraction(1, 10**6),
    "µs": Fraction(1, 10**6),
    "ms": Fraction(1, 10**3),
    "s": Fraction(1),
    "sec": Fraction(1),
    "seconds": Fraction(1),
    "min": Fraction(60),
    "minutes": Fraction(60),
    "h": Fraction(3600),
    "hours": Fraction(3600),
    "d": Fraction(86400),
    "day": Fraction(86400),
    "days": Fraction(86400),
    "years": Fraction(86400 * 365),
}
MOST = 100
"""The largest length of an answer, in characters."""


_ANSWER = re.compile(r"([0-9][0-9,_]*\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]{1,2})?\s*([a-zµ%]*)")
"""A number, its exponent and its unit."""


def parse_answer(text: str, kind: Kind) -> Fraction:
    """Return the number in the base unit of its kind. A number without a unit is in base units.

    Raises LLMBenchError for another text, for a unit of another kind, and for a negative number.
    """
    hint = f"for example {', '.join(EXAMPLES[kind])}"
    match = _ANSWER.fullmatch(text.strip()[:MOST].lower())
    if match is None or len(text) > MOST:
        raise LLMBenchError(f"--answer {text[:40]}: this is not a number from 0 with a unit", hint=hint)
    digits, exponent, unit = match[1].replace("_", ""), match[2] or "", match[3]
    try:
        number = Fraction(Decimal(without_commas(digits) + exponent))
    except ValueError as problem:
        raise LLMBenchError(f"--answer {text[:40]}: the number {problem}", hint=hint) from None
    factor = _factor(unit, kind)
    if factor is None:
        raise LLMBenchError(f"--answer {text[:40]}: `{unit}` is no unit of this answer", hint=hint)
    if kind == "share" and not unit and number > 1:
        raise LLMBenchError(f"--answer {text[:40]}: a share without % is at most 1", hint=hint)
    return number * factor


def _factor(unit: str, kind: Kind) -> Fraction | None:
    """Return the size of a unit in base units, or None if the kind has no such unit."""
    match kind:
        case "count" | "number":
            return _known(_COUNTS, unit.removesuffix("parameters").removesuffix("params"))
        case "bytes":
            return _known(_BYTES, unit)
        case "share":
            return {"": Fraction(1), "%": Fraction(1, 100)}.get(unit)
        case "days":
            return Fraction(1) if not unit else _known({name: size / 86400 for name, size in _SECONDS.items()}, unit)
        case "seconds":
            return Fraction(1) if not unit else _known(_SECONDS, unit)
        case "flops":
            return _known(_PREFIXES, unit.removesuffix("flops").removesuffix("flop"))
        case _:
            assert_never(kind)


def _known(units: dict[str, int] | dict[str, Fraction], unit: str) -> Fraction | None:
    return Fraction(units[unit]) if unit in units else None
