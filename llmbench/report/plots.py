"""Plot curves as text for a terminal, or curves and columns as a picture file with matplotlib.

Both axes of curves are logarithmic.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

from llmbench.errors import CannotRunError, LLMBenchError, install_hint
from llmbench.report.units import Unit, fitting, heading, shown, size

__all__ = ["Column", "Columns", "Panel", "Series", "check_plot", "save", "terminal"]

SUFFIXES = (".png", ".svg", ".pdf")
PICTURES = re.compile(rb"\x89PNG|<\?xml|%PDF")
"""Matches the beginnings of the files of these formats."""
LETTERS = "abcdefghijklmnopqrstuvwxyz"
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""The palette of Okabe and Ito for colour-blind readers (https://jfly.uni-koeln.de/color). Grey replaces yellow."""
MARKERS = "osD^vPX*"


class Series(NamedTuple):
    """A curve.

    - `points`: (x, y) pairs, in which x and y are above zero. `missing`: a remark about missing points.
    - `crossed`: the x values whose points get a cross. `Panel.cross` says what it means.
    """

    name: str
    points: list[tuple[float, float]]
    missing: str = ""
    crossed: frozenset[float] = frozenset()

    @property
    def label(self) -> str:
        """The text of the curve in the legend."""
        return f"{self.name} ({self.missing})" if self.missing else self.name


class Panel(NamedTuple):
    """A plot with one pair of axes and several curves.

    `y`: the name of the plotted quantity, for example time. `unit`: the base unit of `y`: "s", "B" (bytes) or "nats".
    `x`: the label of the x axis. `case`: the setting of the measurement. `cross`: what a cross at a point means.
    """

    y: str
    case: str
    x: str
    unit: str
    series: list[Series]
    cross: str = ""

    @property
    def title(self) -> str:
        """The title of the plot."""
        return f"{self.y}, {self.case}" if self.case else self.y


class Column(NamedTuple):
    """One column of a plot: its mean, half of the interval around it, and the single values.

    `mean`, `half`: None if unknown. `crossed`: the values that the mean leaves out.
    """

    label: str
    mean: float | None
    half: float | None
    values: list[float]
    crossed: list[float]


class Columns(NamedTuple):
    """A plot with a column for each of several cases, on a linear axis.

    `y`: the label of the axis. `interval`, `cross`: what an interval and a cross mean. `line`: a horizontal line with
    its label.
    """

    title: str
    y: str
    columns: list[Column]
    interval: str
    cross: str
    line: tuple[str, float]

    @property
    def width(self) -> float:
        """The width in inches at which the labels do not overlap, with the legend beside the axes."""
        longest = max(len(line) for column in self.columns for line in column.label.split("\n"))
        return 3.0 + max(0.8, 0.085 * longest) * len(self.columns)


def check_plot(path: Path) -> None:
    """Raise LLMBenchError for an unknown picture format, and CannotRunError if matplotlib cannot write a picture.

    A command calls this function before it measures.
    """
    if path.suffix not in SUFFIXES:
        raise LLMBenchError(
            f"--plot {path}: unknown picture format", hint=f"use a file name that ends in {', '.join(SUFFIXES)}"
        )
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise CannotRunError("--plot needs matplotlib, which is not installed", hint=install_hint("plot"))
    try:
        figure = _figure((1, 1))
        figure.text(0.5, 0.5, "0")
        figure.savefig(BytesIO(), format=path.suffix[1:])
    except Exception as problem:  # a broken installation or configuration can raise any error
        raise CannotRunError(
            f"--plot: matplotlib cannot draw: {type(problem).__name__}: {problem}", hint="leave out --plot"
        ) from None


def _figure(size_inches: tuple[float, float], **options: Any) -> Any:
    """Return an empty figure, which is drawn without a display."""
    _forget_backend()
    from matplotlib.figure import Figure

    return Figure(figsize=size_inches, **options)


def _forget_backend() -> None:
    """Remove MPLBACKEND. If it names a backend that is not installed, matplotlib cannot be imported.

    The backend is for windows, such as that of a notebook, and a figure without a window needs none.
    """
    os.environ.pop("MPLBACKEND", None)


_SHOWN_IN: dict[str, Unit] = {"s": "ms", "B": "gib", "nats": "number"}
"""The display unit of each base unit, before `fitting` adapts the display unit to the values."""


def save(panels: Sequence[Panel | Columns], path: Path, *, title: str = "", caption: str = "") -> None:
    """Write all panels into one picture, with a title above and a caption below. Two panels with curves share a row.

    Raises LLMBenchError if the file cannot be written.
    """
    with _plain_texts():
        _save(panels, path, title, caption)


@contextmanager
def _plain_texts() -> Iterator[None]:
    """Show texts as they are. Otherwise matplotlib takes `$` in the name of a model as the start of a formula."""
    _forget_backend()
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False, "text.usetex": False}):
        yield


def _save(panels: Sequence[Panel | Columns], path: Path, title: str, caption: str) -> None:
    curves = [panel for panel in panels if isinstance(panel, Panel)]
    across = min(2, len(panels)) if curves else 1
    rows = -(-len(panels) // across)
    width = max([5.6 * across, *(panel.width for panel in panels if isinstance(panel, Columns))])
    figure = _figure((width, 3.4 * rows + 0.7), dpi=150, layout="constrained")
    names = dict.fromkeys(series.name for panel in curves for series in panel.series)
    styles = {name: _style(number) for number, name in enumerate(names)}
    for index, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, across, index)
        if isinstance(panel, Panel):
            _draw(axes, panel, styles)
        else:
            _draw_columns(axes, panel)
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    if caption:
        figure.supxlabel(caption, fontsize=7, color="#555555")
    try:
        figure.savefig(path)
    except OSError as problem:
        raise LLMBenchError(f"cannot write {path}: {problem.strerror}") from None


def _style(number: int) -> dict[str, Any]:
    """Return the colour, marker and line style of curve `number`. Markers are hollow, because curves may overlap."""
    return {
        "color": COLORS[number % len(COLORS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": "-" if number < len(COLORS) else "--",
        "markersize": 4.5,
        "markerfacecolor": "none",
        "linewidth": 1.4,
    }


def _draw(axes: Any, panel: Panel, styles: dict[str, dict[str, Any]]) -> None:
    points = [point for series in panel.series for point in series.points]
    unit = fitting(_SHOWN_IN[panel.unit], [y for _, y in points])
    for series in panel.series:
        xs, ys = zip(*series.points, strict=True) if series.points else ((), ())
        axes.plot(xs, ys, label=series.label, **styles[series.name])
        crossed = [point for point in series.points if point[0] in series.crossed]
        if crossed:
            axes.plot(*zip(*crossed, strict=True), **_CROSS | {"color": styles[series.name]["color"]})
    if any(series.crossed for series in panel.series):
        axes.plot([], [], label=panel.cross, **_CROSS)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel(panel.x, fontsize=9)
    axes.set_ylabel(heading(panel.y, unit), fontsize=9)
    measured = sorted({x for x, _ in points})
    if measured:
        axes.set_xscale("log")
        axes.set_yscale("log")
        labels = [f"{x:,.0f}" if x >= 1 else f"{x:g}" for x in measured]
        axes.set_xticks(measured, labels, rotation=30 if len(measured) > MOST_TICKS else 0)
        ticks = _ticks([y for _, y in points], panel.unit)
        axes.set_yticks(ticks, [_plain(shown(y, unit)) for y in ticks])
        margin = (ticks[-1] / ticks[0]) ** 0.02  # space for the markers at both ends
        axes.set_ylim(ticks[0] / margin, ticks[-1] * margin)
        axes.minorticks_off()
    _tidy(axes)
    # Beside the axes, many names hide no curve.
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if len(panel.series) > MOST_INSIDE else {}
    axes.legend(fontsize=7.5, frameon=False, **beside)


def _draw_columns(axes: Any, panel: Columns) -> None:
    for place, column in enumerate(panel.columns):
        for values, style in ((column.values, _DOT), (column.crossed, _CROSS)):
            axes.plot([place] * len(values), values, **style)
        if column.mean is not None:
            axes.errorbar(place, column.mean, yerr=column.half, **_MEAN)
    axes.axhline(panel.line[1], color="#7F7F7F", linewidth=1.0, linestyle="--", label=panel.line[0])
    axes.errorbar([], [], yerr=[], label=panel.interval, **_MEAN)
    axes.plot([], [], label="one seed", **_DOT)
    if any(column.crossed for column in panel.columns):
        axes.plot([], [], label=panel.cross, **_CROSS)
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_ylabel(panel.y, fontsize=9)
    axes.set_xticks(range(len(panel.columns)), [column.label for column in panel.columns])
    axes.set_xlim(-0.5, len(panel.columns) - 0.5)
    _tidy(axes)
    axes.legend(fontsize=7.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _tidy(axes: Any) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(visible=True, color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


_CROSS: dict[str, Any] = {
    "color": "#000000",
    "marker": "x",
    "linestyle": "none",
    "markersize": 8,
    "markeredgewidth": 1.4,
}
_DOT: dict[str, Any] = {"color": "#56B4E9", "marker": ".", "linestyle": "none", "markersize": 6}
_MEAN: dict[str, Any] = {"color": "#0072B2", "fmt": "o", "markersize": 4.5, "markerfacecolor": "none", "capsize": 5}


def _plain(number: str) -> str:
    """Return the text of a number without trailing zeros after the decimal point."""
    return number.rstrip("0").rstrip(".") if "." in number else number


_GRIDS: dict[str, tuple[tuple[int, tuple[float, ...]], ...]] = {
    "s": ((10, (1, 1.5, 2, 3, 4, 5, 6, 8)), (10, (1, 2, 5)), (10, (1,)), (100, (1,))),
    "nats": ((10, (1, 1.2, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 8)), (10, (1, 2, 5)), (10, (1,)), (100, (1,))),
    "B": ((2, (1, 1.5)), (2, (1,)), (4, (1,)), (16, (1,))),
}
"""Grids of tick values for each base unit, the finest grid first.

A grid is a pair (base, digits). Its ticks are all products of a digit and a power of the base.
"""
MOST_TICKS = 9
MOST_INSIDE = 4
"""The largest number of curves whose names stand inside the axes."""


def _ticks(values: list[float], unit: str) -> list[float]:
    """Return tick values that enclose all `values`: the ticks of the finest grid with at most MOST_TICKS ticks."""
    low, high = min(values), max(values)
    ticks: list[float] = []
    for base, digits in _GRIDS[unit]:
        first, last = math.floor(math.log(low, base)) - 1, math.ceil(math.log(high, base)) + 1
        every = [digit * float(base) ** power for power in range(first, last + 1) for digit in digits]
        start = max(tick for tick in every if tick <= low)
        end = min(tick for tick in every if tick >= high and tick > start)
        ticks = [tick for tick in every if start <= tick <= end]
        if len(ticks) <= MOST_TICKS:
            break
    return ticks


def terminal(panel: Panel, *, width: int = 64, height: int = 14) -> list[str]:
    """Return the panel as lines of text. A letter marks the points of each curve, and `*` marks overlapping points."""
    points = [point for series in panel.series for point in series.points]
    if not points:
        return []
    (left, right), (low, high) = (_span([point[axis] for point in points]) for axis in (0, 1))
    grid = [[" "] * width for _ in range(height)]
    for letter, series in zip(LETTERS, panel.series, strict=False):
        for x, y in series.points:
            column = round((math.log(x) - left) / (right - left) * (width - 1))
            row = height - 1 - round((math.log(y) - low) / (high - low) * (height - 1))
            mark = grid[row][column]
            grid[row][column] = letter if mark in (" ", letter) else "*"
    labels = [""] * height
    labels[0], labels[-1] = (_amount(math.exp(end), panel.unit) for end in (high, low))
    edge = max(map(len, labels))
    lines = [panel.title, *(f"{label:>{edge}} ┤{''.join(row)}" for label, row in zip(labels, grid, strict=True))]
    ends = f"{math.exp(left):,.0f}", f"{math.exp(right):,.0f}"
    lines.append(" " * edge + " └" + "─" * width)
    lines.append(" " * (edge + 2) + ends[0] + f"{panel.x:^{width - len(ends[0]) - len(ends[1])}}" + ends[1])
    names = [f"{letter} {series.label}" for letter, series in zip(LETTERS, panel.series, strict=False)]
    return [line.rstrip() for line in [*lines, " " * (edge + 2) + " · ".join(names)]]


def _span(values: list[float]) -> tuple[float, float]:
    """Return the logarithms of the smallest and the largest value. If they are equal, return a range of length 1."""
    low, high = math.log(min(values)), math.log(max(values))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _amount(value: float, unit: str) -> str:
    """Return the text of a value in seconds, bytes or nats, in the largest unit in which the value is at least one."""
    if unit == "B":
        return size(value)
    if unit == "nats":
        return f"{value:.3g} nats"
    for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale:
            return f"{value / scale:.3g} {name}"
    return f"{value * 1e9:.3g} ns"
