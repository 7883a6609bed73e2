"""Read the figures of the textbook's claims from the rows of the runs."""

from __future__ import annotations

from collections.abc import Mapping

from llmbench.bench.experiments.textbook.runs import is_own
from llmbench.bench.results.metrics import peak_bytes
from llmbench.bench.results.words import in_words
from llmbench.errors import LLMBenchError
from llmbench.measure.measurement import ratio
from llmbench.measure.results import Row
from llmbench.textbook.claim import Measured, Reading

__all__ = ["Rows", "read"]

Rows = Mapping[str, Row]
"""The rows of a run, by the name of the candidate."""


class NoFigureError(Exception):
    """The error for a claim that has no figure on this machine. The message is the reason."""


def read(reading: Reading, rows: Rows) -> Measured:
    """Return the figure of a reading, from the rows of its run. `rows` is empty if the run was not made."""
    try:
        figure = _figure(reading, rows)
    except NoFigureError as problem:
        return Measured(None, str(problem))
    cases = [row.case for row in rows.values()]
    if all(map(is_own, cases)):
        return Measured(figure)
    where = ", ".join(in_words(cases[0], [name for name in cases[0] if name not in ("run", "dtype")]))
    return Measured(figure, f"this run was smaller than the setting of the claim: {where}")


def _figure(reading: Reading, rows: Rows) -> float:
    row, over = _timed(rows, reading.of), _timed(rows, reading.over)
    if reading.kind == "memory change":
        return _peak(row) / _peak(over) - 1
    return _time_ratio(row, over) - (reading.kind == "time change")


def _timed(rows: Rows, name: str) -> Row:
    if name not in rows:
        raise NoFigureError("not run")
    row = rows[name]
    if row.status != "ok":
        raise NoFigureError(f"{name}: {row.status}, {row.reason}")
    return row


def _peak(row: Row) -> int:
    """Return the peak memory of a candidate, with its weights."""
    measured = peak_bytes(row)
    if measured is None:
        raise NoFigureError(f"{row.implementation}: memory was not measured")
    return measured


def _time_ratio(row: Row, over: Row) -> float:
    """Return the median of the per-sample time ratios of two candidates."""
    above, below = row.measurement, over.measurement
    assert above is not None
    assert below is not None
    try:
        return ratio(above, below).median
    except LLMBenchError as problem:
        raise NoFigureError(str(problem)) from None
