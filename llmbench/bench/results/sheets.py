"""Turn the rows of an experiment into sheets (one table each) with remarks, and into curves. Find the baseline of each
row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from llmbench.bench.experiments.experiment import Chart, Experiment
from llmbench.bench.results.metrics import peak_bytes
from llmbench.bench.results.words import in_words
from llmbench.measure.measurement import merged_remarks
from llmbench.measure.results import Row, Scalar
from llmbench.report.plots import Panel, Series

__all__ = ["Sheet", "baseline_of", "curves", "has_curves", "remarks", "sheets"]

Case = Mapping[str, Scalar]


class Sheet(NamedTuple):
    """One table of an experiment. The cases of its rows differ only in the field that is the chart's x axis. `title`:
    the fields in which this table differs from the other tables, in words."""

    title: str
    rows: list[Row]


def sheets(rows: Sequence[Row], chart: Chart | None) -> tuple[str, list[Sheet]]:
    """Return the fields that all rows share, in words, and the sheets in the order of their first rows."""
    common, titles = _titles([row.case for row in rows], chart)
    by_title: dict[str, list[Row]] = {}
    for title, row in zip(titles, rows, strict=True):
        by_title.setdefault(title, []).append(row)
    return common, [Sheet(title, sorted(own, key=lambda row: _x(row.case, chart))) for title, own in by_title.items()]


def _titles(cases: Sequence[Case], chart: Chart | None) -> tuple[str, list[str]]:
    """Return the fields that all cases share, in words. Also return the other fields of each case in words, except the
    field of the chart's x axis."""
    names = cases[0] if cases else {}
    shared = [name for name in names if len({str(case.get(name)) for case in cases}) == 1]
    hidden = {*shared, chart.x if chart else ""}
    titles = [", ".join(in_words(case, [name for name in case if name not in hidden])) for case in cases]
    return " · ".join(in_words(names, shared)), titles


def _x(case: Case, chart: Chart | None) -> float:
    """Return the x value of a case, or 0 if the case has no x value."""
    value = case.get(chart.x) if chart else None
    return float(value) if isinstance(value, (int, float)) else 0.0


def baseline_of(rows: Sequence[Row], experiment: Experiment) -> dict[int, Row]:
    """Return the baseline of each row: the row of `experiment.baseline` in the same group. The keys are the indices of
    the rows."""
    by_case = {_case(row): row for row in rows if row.implementation == experiment.baseline}
    return {index: by_case[_case(row)] for index, row in enumerate(rows) if _case(row) in by_case}


def _case(row: Row) -> tuple[tuple[str, Scalar], ...]:
    return tuple(sorted(row.case.items()))


def remarks(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the lines below a table: the reasons for rows without a time, remarks on the times, and the attention
    kernels that ran. Candidates with the same remark share a line."""
    untimed = [row for row in rows if row.measurement is None]
    yield from merged_remarks((row.implementation, {f"{row.status}, {row.reason}": ""}) for row in untimed)
    timed = [(row.implementation, row.measurement) for row in rows if row.measurement is not None]
    yield from merged_remarks((name, measurement.remarks_by_kind()) for name, measurement in timed)
    ran: dict[str, list[str]] = {}
    for row in rows:
        if row.kernels:
            ran.setdefault(", ".join(dict.fromkeys(map(_short, row.kernels))), []).append(row.implementation)
    for kernels, names in ran.items():
        yield f"{', '.join(dict.fromkeys(names))} ran {kernels}"


def _short(kernel: str) -> str:
    """Return a kernel's name without its return type, template arguments and arguments."""
    return kernel.removeprefix("void ").partition("<")[0].partition("(")[0]


def has_curves(cases: Sequence[Case], chart: Chart | None) -> bool:
    """Return whether a sheet of these cases has at least two x values."""
    xs_by_title: dict[str, set[float]] = {}
    for title, case in zip(_titles(cases, chart)[1], cases, strict=True):
        xs_by_title.setdefault(title, set()).add(_x(case, chart))
    return any(len(xs - {0.0}) > 1 for xs in xs_by_title.values())


def curves(sheets: Iterable[Sheet], chart: Chart | None) -> list[Panel]:
    """Return the curves of time and of peak memory over the chart's x. Each sheet with at least two x values gives two
    panels. The label of a candidate names the status of its rows without a time."""
    panels = []
    for sheet in sheets:
        rows = [row for row in sheet.rows if _x(row.case, chart) > 0]
        if chart is None or not has_curves([row.case for row in rows], chart):
            continue
        names = dict.fromkeys(row.implementation for row in rows)
        for what, unit in (("time", "s"), ("peak memory", "B")):
            series = []
            for name in names:
                own = [row for row in rows if row.implementation == name]
                values = [(_x(row.case, chart), row.seconds if what == "time" else peak_bytes(row)) for row in own]
                points = [(x, float(value)) for x, value in values if value]
                series.append(Series(name, points, _missing(own, chart)))
            panels.append(Panel(what, sheet.title, chart.label, unit, series))
    return panels


def _missing(rows: Sequence[Row], chart: Chart) -> str:
    """Return the statuses of a candidate's rows without a time, in words. Examples: "n/a", "OOM at 8,192, 16,384"."""
    where: dict[str, list[str]] = {}
    for row in rows:
        if row.status != "ok":
            where.setdefault(row.status, []).append(f"{_x(row.case, chart):,.0f}")
    if len(where) == 1 and not any(row.status == "ok" for row in rows):
        return next(iter(where))
    return "; ".join(f"{status} at {', '.join(places)}" for status, places in where.items())
