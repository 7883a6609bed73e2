"""Signs for streams whose encoding lacks the signs of the answers. A number keeps its value: −31.7% becomes -31.7%."""

from __future__ import annotations

import codecs

__all__ = ["SIGNS"]

SIGNS = "llmbench.signs"
"""The name of the error handler of streams, for `reconfigure(errors=SIGNS)`."""

_SIGNS = {
    "−": "-", "–": "-", "—": "-", "×": "x", "…": "...", "±": "+/-", "√": "sqrt ", "∞": "inf", "½": "1/2", "¼": "1/4",
    "≤": "<=", "≥": ">=", "≈": "~", "→": "->", "µ": "u", "Σ": "sum ", "π": "pi", "─": "-", "├": "|", "└": "`", "│": "|",
}  # fmt: skip
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))


def _in_ascii(problem: UnicodeError) -> tuple[str, int]:
    """Return ASCII characters for those that an encoding lacks, and the place where the encoding goes on."""
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    text = problem.object
    return "".join(_sign(text, at) for at in range(problem.start, problem.end)), problem.end


def _sign(text: str, at: int) -> str:
    """Return the ASCII characters for one character of a text, or "?"."""
    character, before = text[at], text[at - 1 : at]
    if character in _RAISED:
        return _RAISED[character] if before in _RAISED else f"^{_RAISED[character]}"
    if character == "·":
        return "|" if before in ("", " ") else "*"  # between parts of a line, or between factors
    return _LOWERED.get(character) or _SIGNS.get(character, "?")


codecs.register_error(SIGNS, _in_ascii)
