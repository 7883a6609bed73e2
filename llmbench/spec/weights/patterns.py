"""Patterns of module names, such as the `ignore` list of a quantization_config.

Checkpoints use several kinds of patterns. llmbench converts all of them to two kinds:

- One or several whole parts of a dotted name, where `*` stands for any characters: `lm_head`, `mlp.gate`,
  `model.layers.*.self_attn`. The pattern also matches every module inside the named one.
- `re:` and a regular expression, which must match from the beginning of the name.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable
from functools import lru_cache

from llmbench.errors import SpecError

LONGEST = 1000
"""The largest length of a pattern in characters. Patterns of real checkpoints have fewer than 200."""

MOST_COST = 2000
"""The largest cost of all patterns of a model together for one name (see `cost`)."""

MOST_WORK = 3_000_000
"""The largest cost of the patterns of a model for all names together. Matching them takes a few seconds at most."""

_TOKEN = re.compile(
    r"(?P<quantifier>(?:[*+?]|\{\d*,?\d*\})[?+]?)"
    r"|(?P<open>\((?:\?(?:[:=!>]|<[=!]|P<\w+>))?)|(?P<close>\))|(?P<bar>\|)"
    r"|(?P<digits>\\d|\[\d-]+\])|(?P<wide>\.|\\[A-Zsw]|\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<literal>\\.|.)",
    re.DOTALL,
)
"""Matches one part of a regular expression."""

_ODD_GROUP = re.compile(r"(?<!\\)(?:\\\\)*\(\?(?!:|=|!|>|<=|<!|P<\w+>)")
"""Matches the beginning of a group that changes how the rest is read, such as `(?x)`, or that needs another group."""


def faulty_pattern(pattern: str) -> str | None:
    """Return what is wrong with a pattern, or None."""
    if len(pattern) > LONGEST:
        return f"has {len(pattern):,} characters, but a pattern has at most {LONGEST:,}"
    if not pattern.strip():
        return "an empty pattern matches nothing"
    if pattern.startswith("re:"):
        if _ODD_GROUP.search(pattern.removeprefix("re:").removeprefix("(?i)")):
            return f"`{pattern[:80]}` has a flag, a comment or a condition; only the flag (?i) at its beginning is read"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # Python may read such an expression in another way in the future
                re.compile(pattern[3:])
        except (re.error, RecursionError, OverflowError, Warning) as problem:
            return f"`{pattern[:80]}` is not a regular expression: {problem}"
        if cost(pattern) > MOST_COST:
            return f"`{pattern[:80]}` has so many repetitions and alternatives that it can run for years"
    return None


def faulty_patterns(patterns: Iterable[str]) -> str | None:
    """Return what is wrong with one of the patterns, or with all of them together, or None."""
    total = 0.0
    for pattern in patterns:
        wrong = faulty_pattern(pattern)
        if wrong is not None:
            return wrong
        total += cost(pattern)
        if total > MOST_COST:
            return "there are too many patterns, or they have too many repetitions and alternatives"
    return None


def cost(pattern: str) -> float:
    """Estimate the largest time that a pattern needs for a name, in units of the time of a pattern such as `*.gate`.

    Python tries every way to divide a name among the repetitions of a regular expression. So the second repetition of
    any character multiplies the time by about 8, and every further one by about half the length of a name. A repetition
    that takes as few characters as possible needs more time per character. A run of digits in a name is short. Of
    alternatives that begin with different characters, only one fits, so they cost nothing.
    A long pattern also takes time before it is used: its cost is at least that of its length.
    Infinite: a group that repeats contains repetitions or alternatives, such as `(a+)+`.
    """
    least = max(1.0, len(pattern) / 100)
    if not pattern.startswith("re:"):
        return least if "*" in pattern else 0
    factor, wide = 1.0, 0
    groups = [_Group()]
    last = ""
    for token in _TOKEN.finditer(re.sub(r"(?<!\\)(?:\.[*+])+\$?$", "", pattern[3:])):
        kind = str(token.lastgroup)
        group = groups[-1]
        if kind == "quantifier":
            if last == "varying group" and token[0] != "?":
                return math.inf
            if token[0] == "?" or last in ("digits", "literal"):
                factor *= 2
            else:
                wide += 1
                factor *= 2 if token[0].endswith("?") else 1
            group.varies = True
        elif kind == "bar":
            group.firsts.append("")
        elif kind == "close" and len(groups) > 1:
            factor *= group.ways
            groups.pop()
            groups[-1].varies |= group.varies or len(group.firsts) > 1
            kind = "varying group" if group.varies or len(group.firsts) > 1 else "group"
        else:
            group.firsts[-1] = group.firsts[-1] or (token[0] if kind == "literal" else kind)
            if kind == "open":
                groups.append(_Group())
        last = kind
    return max(least, factor * groups[0].ways * (8 * 25.0 ** (wide - 2) if wide > 1 else 1))


class _Group:
    """A group of a regular expression. `firsts`: the first character of each alternative, or the kind of its part."""

    def __init__(self) -> None:
        self.firsts = [""]
        self.varies = False

    @property
    def ways(self) -> int:
        """The number of alternatives that can fit at one place of a name."""
        different = len(set(self.firsts)) == len(self.firsts)
        literal = all(len(first) == 1 or first.startswith("\\") for first in self.firsts)
        return 1 if different and literal else len(self.firsts)


class _Work:
    """The cost of all searches so far."""

    def __init__(self) -> None:
        self.done = 0.0

    def add(self, cost: float) -> None:
        """Count the cost of the next search. Raises SpecError if it is too much."""
        self.done += cost
        if self.done > MOST_WORK:
            raise SpecError(
                "names of modules: the patterns have too many repetitions for a model with so many modules",
                hint="say the format of the weights with --weights, for example --weights fp8",
            )


def pattern_lists(lists: Iterable[Iterable[str]]) -> list[Patterns]:
    """Return several lists of patterns for the modules of one model.

    Raises SpecError if a pattern is faulty, or if all lists together cost too much.
    """
    each = list(map(tuple, lists))
    wrong = faulty_patterns(pattern for patterns in each for pattern in patterns)
    if wrong is not None:
        raise SpecError(f"names of modules: {wrong}")
    work = _Work()
    return [Patterns(patterns, work) for patterns in each]


class Patterns:
    """A list of patterns. It remembers which of them have matched a name.

    work: what several lists together may cost. Raises SpecError if a pattern is faulty, or if all cost too much.
    """

    def __init__(self, patterns: Iterable[str], work: _Work | None = None) -> None:
        listed = tuple(dict.fromkeys(patterns))
        wrong = faulty_patterns(listed)
        if wrong is not None:
            raise SpecError(f"names of modules: {wrong}")
        self._plain: set[str] = set()
        self._searched: dict[str, tuple[str, re.Pattern[str]]] = {}  # a part of every name that matches, and the search
        self.matched: set[str] = set()
        for pattern in listed:
            if pattern.startswith("re:"):
                self._searched[pattern] = (_literal(pattern[3:]), re.compile(pattern[3:]))
            elif "*" in pattern:
                self._searched[pattern] = (max(pattern.strip(".").split("*"), key=len), _parts(pattern))
            else:
                self._plain.add(pattern)
        self._stripped = {pattern.strip("."): pattern for pattern in self._plain}
        self._names = frozenset(self._stripped)
        self._costs = {pattern: cost(pattern) for pattern in self._searched}
        self._work = work or _Work()

    def __bool__(self) -> bool:
        return bool(self._stripped or self._searched)

    @property
    def unmatched(self) -> list[str]:
        """The patterns that have matched no name yet."""
        return [name for name in (*self._stripped.values(), *self._searched) if name not in self.matched]

    def match(self, names: Iterable[str]) -> bool:
        """Return whether at least one pattern matches at least one of the names.

        Raises SpecError if the patterns cost too much for so many names.
        """
        found = False
        for name in names:
            for pattern, (part, compiled) in self._searched.items():
                if part not in name:
                    continue
                self._work.add(self._costs[pattern])
                if compiled.match(name):
                    self.matched.add(pattern)
                    found = True
            if self._names:
                self._work.add(1)
                for run in self._names & _runs(name):
                    self.matched.add(self._stripped[run])
                    found = True
        return found


def _literal(expression: str) -> str:
    """Return a text that every name contains which a regular expression matches, or "". Looking for it is fast."""
    if expression.startswith("(?i)") or re.search(r"\\[^\W_dDwWsSbBAZ]", expression):
        return ""  # an escape such as \x61 has several characters
    runs, depth = [""], 0
    for token in _TOKEN.finditer(expression):
        text, kind = token[0], token.lastgroup
        depth += (kind == "open") - (kind == "close")
        if kind == "bar" and depth == 0:
            return ""
        character = text[-1] if len(text) == 1 or not text[-1].isalnum() else ""
        if kind == "literal" and depth == 0 and character and text not in ("^", "$"):
            runs[-1] += character
        else:
            runs[-1:] = [runs[-1][:-1] if kind == "quantifier" else runs[-1], ""]
    return max(runs, key=len)


def _parts(pattern: str) -> re.Pattern[str]:
    """Return a regular expression for a pattern with `*`. It takes the first place of each part of the pattern, and a
    place that is taken is not tried again: the time is proportional to the length of the name."""
    first, *middle, last = map(re.escape, pattern.strip(".").split("*"))
    between = "".join(f"(?>.*?{part})" for part in middle)
    return re.compile(rf"(?>(?:|.*?\.){first}){between}.*?{last}(?:\..*)?$")


@lru_cache(maxsize=2**14)  # every list of patterns asks for the same names
def _runs(name: str) -> frozenset[str]:
    """Return every run of whole parts of a dotted name: `a.b.c` gives a, a.b, a.b.c, b, b.c and c."""
    parts = name.split(".")
    return frozenset(".".join(parts[i:j]) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
