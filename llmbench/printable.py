"""Text that a terminal shows as it is.

Names and notes come from files of strangers. A terminal obeys control characters: they can erase lines, change the
title or write to the clipboard. Every text that leaves llmbench goes through `printable`, or, in JSON, through
`json_escaped`.
"""

from __future__ import annotations

import re

__all__ = ["UNSAFE", "json_escaped", "printable"]

UNSAFE = (
    "\x00-\x1f\x7f-\x9f"  # control characters, with the escape character
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069"  # invisible characters, and those that change the direction
    "\u2028\u2029\ufeff\ufff9-\ufffb"  # separators of lines and annotations
    "\u00ad\u034f\u115f\u1160\u180b-\u180f\u3164\uffa0\U0001bca0-\U0001bca3\U0001d173-\U0001d17a"  # invisible
    "\ud800-\udfff"  # halves of characters, which UTF-8 cannot encode
    "\U000e0000-\U000e01ef"  # invisible tags and selectors
)
"""The characters that a terminal obeys or does not show, as a range of a regular expression."""

_UNSAFE = re.compile(f"[{UNSAFE}]")


def printable(text: str, *, most: int | None = None, lines: bool = False) -> str:
    r"""Return a text whose unsafe characters are replaced by escapes such as `\x1b`.

    `most`: the largest number of characters; the rest is replaced by "…". `lines`: whether line breaks stay.
    """
    if most is not None and len(text) > most:
        text = f"{text[:most]}…"
    if text.isascii() and text.isprintable():  # most texts
        return text
    if lines:
        escaped = "\n".join(_UNSAFE.sub(_escape, line) for line in text.split("\n"))
    else:
        escaped = _UNSAFE.sub(_escape, text)
    return escaped if most is None or len(escaped) <= most + 1 else f"{escaped[:most]}…"


def json_escaped(text: str) -> str:
    """Return the same JSON with escapes in place of unsafe characters. Line breaks between values stay."""
    return "\n".join(_UNSAFE.sub(_json_escape, line) for line in text.split("\n"))


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape", "backslashreplace").decode() if match[0] != "\t" else " "


def _json_escape(match: re.Match[str]) -> str:
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at] << 8 | units[at + 1]:04x}" for at in range(0, len(units), 2))
