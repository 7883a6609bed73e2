"""Text that a terminal shows as it is.

Names and notes come from files of strangers. A terminal obeys control characters: they can erase lines, change the
title or write to the clipboard. Every text that leaves llmbench goes through `printable`, or, in JSON, through
`json_escaped`.
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["MOST_MARKS", "UNSAFE", "json_escaped", "printable"]

JOINERS = "\u200c\u200d\ufe00-\ufe0f"
"""Invisible characters that prose needs: they join letters, or choose the form of an emoji."""

UNSAFE = JOINERS + (
    "\x00-\x1f\x7f-\x9f"  # control characters, with the escape character
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"  # invisible characters, and those that change the direction
    "\u2028\u2029\ufeff\ufff0-\ufffc"  # separators of lines, annotations and places of objects
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\uffa0"  # invisible
    "\U00013430-\U0001343f\U00016fe4\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a"  # invisible
    "\ud800-\udfff"  # halves of characters, which UTF-8 cannot encode
    "\U000e0000-\U000e0fff"  # invisible tags and selectors
)
"""The characters that a terminal obeys or does not show, as a range of a regular expression."""

MOST_MARKS = 6
"""The largest number of marks, such as accents, on one letter. More would cover the lines above and below."""

_UNSAFE = re.compile(f"[{UNSAFE}]")
_UNSAFE_IN_PROSE = re.compile(f"(?![{JOINERS}])[{UNSAFE}]")
_LONG = re.compile(f"[\u0300-\U0010ffff]{{{MOST_MARKS + 1},}}")
"""Matches characters among which there can be too many marks."""


def printable(text: str, *, most: int | None = None, lines: bool = False, prose: bool = False) -> str:
    r"""Return a text whose unsafe characters are replaced by escapes such as `\x1b`.

    `most`: the largest number of characters; the rest is replaced by "…". `lines`: whether line breaks stay.
    `prose`: whether JOINERS stay. They are not needed in names, and two names could look the same.
    """
    if most is not None and len(text) > most:
        text = f"{text[:most]}…"
    if text.isascii() and text.isprintable():  # most texts
        return text
    unsafe = _UNSAFE_IN_PROSE if prose else _UNSAFE
    rows = text.split("\n") if lines else [text]
    escaped = _without_piles("\n".join(unsafe.sub(_escape, row) for row in rows), _escape)
    return escaped if most is None or len(escaped) <= most + 1 else f"{escaped[:most]}…"


def json_escaped(text: str) -> str:
    """Return the same JSON with escapes in place of unsafe characters. Line breaks between values stay."""
    return _without_piles("\n".join(_UNSAFE.sub(_json_escape, line) for line in text.split("\n")), _json_escape)


def _without_piles(text: str, escape: Callable[[str | re.Match[str]], str]) -> str:
    """Return the text with escapes in place of the marks on one letter that are more than MOST_MARKS."""
    if _LONG.search(text) is None:
        return text
    from unicodedata import category  # few texts need it

    parts, marks = [], 0
    for character in text:
        marks = marks + 1 if category(character) in ("Mn", "Me") else 0
        parts.append(character if marks <= MOST_MARKS else escape(character))
    return "".join(parts)


def _escape(found: str | re.Match[str]) -> str:
    character = found[0]
    return character.encode("unicode_escape", "backslashreplace").decode() if character != "\t" else " "


def _json_escape(found: str | re.Match[str]) -> str:
    units = found[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
