"""Metrics of the errors of several rows."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, median

import msgspec

from llmbench.validation.comparison import Figure, Item


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Metrics of the relative errors of some figures, as fractions of one. All are None if there are no figures.

    median_ape, mape: median and mean of the absolute relative errors. worst: the largest one.
    within_1pct, within_3pct, within_10pct: share of figures whose error is at most this.
    exact: share of figures that are equal, up to the rounding of the measured figure.
    """

    median_ape: float | None
    mape: float | None
    worst: float | None
    within_1pct: float | None
    within_3pct: float | None
    within_10pct: float | None
    exact: float | None


def metrics(figures: Sequence[Figure]) -> Metrics:
    """Return the metrics of some figures."""
    if not figures:
        return Metrics(**dict.fromkeys(Metrics.__struct_fields__))
    errors = [abs(figure.error) for figure in figures]

    def within(bound: float) -> float:
        return fmean(error <= bound for error in errors)

    return Metrics(
        median_ape=median(errors),
        mape=fmean(errors),
        worst=max(errors),
        within_1pct=within(0.01),
        within_3pct=within(0.03),
        within_10pct=within(0.10),
        exact=fmean(figure.exact for figure in figures),
    )


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The metrics of a part of the rows. what: the value or the quantity that these rows share."""

    what: str
    rows: int
    answered: int
    metrics: Metrics


def figures_of(items: Sequence[Item], quantity: str | None = None) -> list[Figure]:
    """Return the figures of the rows whose settings are certain: the first one of each row, or those of `quantity`."""
    answers = [item.answer for item in items if item.answer is not None and not item.answer.doubt]
    if quantity is None:
        return [answer.figures[0] for answer in answers]
    return [figure for answer in answers for figure in answer.figures if figure.quantity == quantity]


def by_group(items: Sequence[Item]) -> list[Summary]:
    """Return the metrics of each value of the column of `--by`, in the order of the file."""
    groups: dict[str, list[Item]] = {}
    for item in items:
        if item.group is not None:
            groups.setdefault(item.group, []).append(item)
    return [
        Summary(what=name, rows=len(some), answered=answered(some), metrics=metrics(figures_of(some)))
        for name, some in groups.items()
    ]


def by_quantity(items: Sequence[Item]) -> list[Summary]:
    """Return the metrics of each measured quantity, in the order of the file."""
    counts: dict[str, int] = {}
    for item in items:
        for figure in item.answer.figures if item.answer is not None else ():
            counts[figure.quantity] = counts.get(figure.quantity, 0) + 1
    return [
        Summary(what=name, rows=count, answered=count, metrics=metrics(figures_of(items, name)))
        for name, count in counts.items()
    ]


def answered(items: Sequence[Item]) -> int:
    """Return the number of rows for which llmbench has a figure."""
    return sum(item.answer is not None for item in items)
