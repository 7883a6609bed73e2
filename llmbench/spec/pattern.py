"""Parser and writer of the pattern, a short text that gives the order of a model's layers.

`32*block` is a model with 32 equal layers. `10*(5*local global) 2*local` is Gemma-3-27B: a group of five local layers
and one global layer occurs ten times, and two local layers follow.

Grammar: ``pattern = item+``, ``item = [count "*"] (name | "(" pattern ")")``. Commas between items are allowed and have
no meaning.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llmbench.errors import SpecError

MAX_LAYERS = 10_000  # real models have far fewer layers, so a larger number is a typing error

_TOKEN = re.compile(r"\s*(?:(\d+)\s*\*|([A-Za-z_][A-Za-z0-9_-]*)|([()])|(,))")


def parse_pattern(pattern: str) -> tuple[str, ...]:
    """Return the name of each layer, from first to last. Raises SpecError if the pattern is invalid."""
    names, _ = _items(pattern.rstrip(), 0, nested=False)
    return tuple(names)


def _items(pattern: str, at: int, *, nested: bool) -> tuple[list[str], int]:
    names: list[str] = []
    times = 1
    pending = False
    while at < len(pattern):
        match = _TOKEN.match(pattern, at)
        if match is None:
            raise SpecError(f"pattern `{_shown(pattern)}`: cannot read `{_shown(pattern[at:].lstrip())}`", hint=_HINT)
        at = match.end()
        count, name, bracket, _comma = match.groups()
        if count is not None:
            if pending or len(count) > 5:
                raise SpecError(f"pattern `{_shown(pattern)}`: unexpected count `{_shown(count)}*`", hint=_HINT)
            times, pending = int(count), True
            continue
        if bracket == ")":
            if not nested or pending or not names:
                raise SpecError(f"pattern `{_shown(pattern)}`: unexpected `)`", hint=_HINT)
            return names, at
        if bracket == "(":
            if pattern.count("(") > 50:
                raise SpecError(f"pattern `{_shown(pattern)}`: has more than 50 opening brackets", hint=_HINT)
            inner, at = _items(pattern, at, nested=True)
            new = inner
        elif name is not None:
            new = [name]
        else:
            continue
        if times * len(new) + len(names) > MAX_LAYERS:
            raise SpecError(f"pattern `{_shown(pattern)}`: gives more than {MAX_LAYERS} layers")
        names += new * times
        times, pending = 1, False
    if nested or pending:
        raise SpecError(f"pattern `{_shown(pattern)}`: ends before an item is complete", hint=_HINT)
    return names, at


_HINT = "write the pattern like `32*block` or `10*(5*local global) 2*local`"


def _shown(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def format_pattern(names: Sequence[str], *, heads: int = 3) -> str:
    """Return a short pattern for a sequence of layer names.

    A pattern can begin with groups of equal layers, such as DeepSeek's first dense layers. A repeated sequence of
    layers, or more groups of equal layers, can follow.

    heads: the largest number of groups before the repeated sequence.
    """
    plain = _runs(names)
    best = plain
    for period in range(2, min(len(names) // 2, 64) + 1):
        repeats = 1
        while tuple(names[repeats * period : (repeats + 1) * period]) == tuple(names[:period]):
            repeats += 1
        if repeats < 2:
            continue
        tail = names[repeats * period :]
        candidate = f"{repeats}*({_runs(names[:period])})" + (f" {_runs(tail)}" if tail else "")
        if len(candidate) < len(best):
            best = candidate
    head = 1
    while head < len(names) and names[head] == names[0]:
        head += 1
    if heads and head < len(names) and head <= 8:
        candidate = f"{_runs(names[:head])} {format_pattern(names[head:], heads=heads - 1)}"
        if len(candidate) < len(best):
            best = candidate
    return best


def _runs(names: Sequence[str]) -> str:
    parts: list[str] = []
    start = 0
    for end in range(1, len(names) + 1):
        if end == len(names) or names[end] != names[start]:
            count = end - start
            parts.append(names[start] if count == 1 else f"{count}*{names[start]}")
            start = end
    return " ".join(parts)
