"""Rows of an experiment as they are shown: in panels of one case each, with what they are compared with, and as
curves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llmbench.bench.experiment import Chart, Experiment
from llmbench.measure.results import Row, Scalar
from llmbench.report.plots import Panel, Series

__all__ = ["Sheet", "baseline_of", "curves", "sheets"]


class Sheet(NamedTuple):
    """Rows whose cases differ in one field at most: the chart's x. `title` says what they share and others do not."""

    title: str
    rows: list[Row]


def sheets(rows: Sequence[Row], chart: Chart | None) -> tuple[str, list[Sheet]]:
    """What all rows share, in words; and the sheets, in the order of their first rows."""
    shared = [name for name in (rows[0].case if rows else {}) if len({str(row.case.get(name)) for row in rows}) == 1]
    x = chart.x if chart else ""
    found: dict[str, list[Row]] = {}
    for row in rows:
        title = _words((name, value) for name, value in row.case.items() if name not in shared and name != x)
        found.setdefault(title, []).append(row)
    common = _words((name, rows[0].case[name]) for name in shared)
    return common, [Sheet(title, sorted(each, key=lambda row: _number(row, x))) for title, each in found.items()]


def _number(row: Row, x: str) -> float:
    value = row.case.get(x)
    return float(value) if isinstance(value, (int, float)) else 0.0


def _words(fields: Iterable[tuple[str, Scalar]]) -> str:
    return " · ".join(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in fields)


def baseline_of(rows: Sequence[Row], experiment: Experiment) -> dict[int, Row]:
    """For each row's place, the row of its group that it is compared with."""
    by_case = {_case(row): row for row in rows if row.implementation == experiment.baseline}
    return {index: by_case[_case(row)] for index, row in enumerate(rows) if _case(row) in by_case}


def _case(row: Row) -> tuple[tuple[str, Scalar], ...]:
    return tuple(sorted(row.case.items()))


def curves(found: Sequence[Sheet], chart: Chart) -> list[Panel]:
    """Time and memory over the chart's x, two panels a sheet that has more than one x."""
    panels = []
    for sheet in found:
        if len({_number(row, chart.x) for row in sheet.rows if _number(row, chart.x) > 0}) < 2:
            continue
        names = dict.fromkeys(row.implementation for row in sheet.rows)
        for what, unit in (("time", "s"), ("memory", "B")):
            series = []
            for name in names:
                points = [
                    (_number(row, chart.x), value)
                    for row in sheet.rows
                    if row.implementation == name and _number(row, chart.x) > 0 and (value := _value(row, what))
                ]
                if points:
                    series.append(Series(name, points))
            panels.append(Panel(" · ".join(filter(None, (what, sheet.title))), chart.label, what, unit, series))
    return panels


def _value(row: Row, what: str) -> float | None:
    """Seconds, or what the call added to memory."""
    if what == "time":
        return row.seconds
    return float(row.memory.added_bytes) if row.memory is not None else None
