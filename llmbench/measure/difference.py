"""Two files of results side by side: what got slower, by more than the noise?"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from llmbench.measure.measurement import Measurement
from llmbench.measure.results import Key, Results, Row

__all__ = ["FLOOR", "Change", "Difference", "diff", "noise"]

FLOOR = 0.03
"""No change is told below this: medians of two runs differ that much for no reason (clocks, where buffers lie)."""

Verdict = Literal["slower", "faster", "same", "broken", "mended", "new", "gone"]


class Change(NamedTuple):
    """A row before and after. `ratio`: time after over time before, None unless both have one; `noise`: how far from 1
    it may lie without meaning anything. "broken": what had a time has none; "mended": the other way round."""

    key: Key
    before: Row | None
    after: Row | None
    ratio: float | None
    noise: float | None
    verdict: Verdict


class Difference(NamedTuple):
    """Every row of either file, and what else differs: devices, versions, what the machine could do."""

    changes: list[Change]
    notes: list[str]

    @property
    def regressions(self) -> list[Change]:
        """What got slower or broke, the worst first."""
        worse = [change for change in self.changes if change.verdict in ("slower", "broken")]
        return sorted(worse, key=lambda change: -(change.ratio or math.inf))


def diff(before: Results, after: Results) -> Difference:
    """Pair the rows of two files by experiment, case and implementation, in the order of `before`."""
    old, new = before.by_key(), after.by_key()
    return Difference([_change(key, old.get(key), new.get(key)) for key in {**old, **new}], _notes(before, after))


def noise(before: Measurement, after: Measurement) -> float:
    """How far apart two medians may lie for no reason, as a ratio less one: both spreads (the reach of the middle half
    over the median) as if they were independent, and never below `FLOOR`. That is wide for a median, on purpose:
    samples of one run resemble each other more than those of two."""
    return max(FLOOR, math.hypot(before.spread, after.spread))


def _change(key: Key, before: Row | None, after: Row | None) -> Change:
    ratio = within = None
    if before is None or after is None:
        verdict: Verdict = "new" if before is None else "gone"
    elif before.measurement is None or after.measurement is None:
        verdict = _of_statuses(before, after)
    else:
        within = noise(before.measurement, after.measurement)
        ratio = after.measurement.median_s / before.measurement.median_s if before.measurement.median_s else math.inf
        verdict = "slower" if ratio > 1 + within else "faster" if ratio < 1 / (1 + within) else "same"
    return Change(key, before, after, ratio, within, verdict)


def _of_statuses(before: Row, after: Row) -> Verdict:
    if before.status == after.status:
        return "same"
    if "ok" in (before.status, after.status):
        return "broken" if before.status == "ok" else "mended"
    return "broken" if after.status in ("INCORRECT", "FAILED") else "same"


def _notes(before: Results, after: Results) -> list[str]:
    """What a reader must know beside the rows, of the last sessions."""
    found = [f"{len(each.damaged)} damaged lines in {each.path} left out" for each in (before, after) if each.damaged]
    if not before.headers or not after.headers:
        return [*found, "a file has no header: where it was measured is not known"]
    old, new = before.headers[-1], after.headers[-1]
    for name in old.environment.__struct_fields__:
        was, now = (getattr(header.environment, name) for header in (old, new))
        if was != now:
            found.append(f"{name}: {was if was is not None else 'unknown'} → {now if now is not None else 'unknown'}")
    if old.inputs != new.inputs:
        found.append("the inputs of the two sessions differ")
    if old.anchors and new.anchors:
        for name in ("matmul", "copy", "read", "launch"):
            was, now = getattr(old.anchors, name), getattr(new.anchors, name)
            within = noise(was.measurement, now.measurement)
            ratio = was.per_s / now.per_s if was.what == now.what else 1.0
            if not 1 / (1 + within) <= ratio <= 1 + within:
                found.append(f"the machine itself: {was.what} takes {ratio:.2f}× as long")
    return found
