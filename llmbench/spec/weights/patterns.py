"""Patterns of module names, such as the `ignore` list of a quantization_config.

Checkpoints use several kinds of patterns. llmbench converts all of them to two kinds:

- One or several whole parts of a dotted name, where `*` stands for any characters: `lm_head`, `mlp.gate`,
  `model.layers.*.self_attn`. The pattern also matches every module inside the named one.
- `re:` and a regular expression, which must match from the beginning of the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 1000
"""The largest length of a pattern in characters. Patterns of real checkpoints have fewer than 200."""

_SLOW = re.compile(r"\([^()]*[*+}][^()]*\)[*+{]")
"""Matches a regular expression with a repetition inside a repetition, such as `(a+)+`."""


def faulty_pattern(pattern: str) -> str | None:
    """Return what is wrong with a pattern, or None."""
    if len(pattern) > LONGEST:
        return f"has {len(pattern):,} characters, but a pattern has at most {LONGEST:,}"
    if not pattern.strip():
        return "an empty pattern matches nothing"
    if pattern.startswith("re:"):
        try:
            re.compile(pattern[3:])
        except (re.error, RecursionError, OverflowError) as problem:
            return f"`{pattern[:80]}` is not a regular expression: {problem}"
        if _SLOW.search(pattern):
            return f"`{pattern[:80]}` repeats a group that repeats, and such an expression can run for years"
    return None


class Patterns:
    """A list of patterns. It remembers which of them have matched a name."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._plain: set[str] = set()
        self._searched: dict[str, re.Pattern[str]] = {}
        self.matched: set[str] = set()
        for pattern in patterns:
            if pattern.startswith("re:"):
                self._searched[pattern] = re.compile(pattern[3:])
            elif "*" in pattern:
                parts = ".*".join(map(re.escape, pattern.strip(".").split("*")))
                self._searched[pattern] = re.compile(rf"(.*\.)?{parts}(\..*)?$")
            else:
                self._plain.add(pattern)
        self._stripped = {pattern.strip("."): pattern for pattern in self._plain}

    def __bool__(self) -> bool:
        return bool(self._stripped or self._searched)

    @property
    def unmatched(self) -> list[str]:
        """The patterns that have matched no name yet."""
        return [name for name in (*self._stripped.values(), *self._searched) if name not in self.matched]

    def match(self, names: Iterable[str]) -> bool:
        """Return whether at least one pattern matches at least one of the names."""
        found = False
        for name in names:
            for pattern, compiled in self._searched.items():
                if compiled.match(name):
                    self.matched.add(pattern)
                    found = True
            for part in _runs(name) if self._stripped else ():
                if part in self._stripped:
                    self.matched.add(self._stripped[part])
                    found = True
        return found


def _runs(name: str) -> Iterable[str]:
    """Return every run of whole parts of a dotted name: `a.b.c` gives a, a.b, a.b.c, b, b.c and c."""
    parts = name.split(".")
    return (".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
