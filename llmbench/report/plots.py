"""Curves: as text for a terminal, and by matplotlib into a file. Both axes are logarithmic."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.report.units import si

__all__ = ["Panel", "Series", "check_plot", "save", "terminal"]

SUFFIXES = (".png", ".svg", ".pdf")
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Series(NamedTuple):
    """A curve: its name, and its points, all above zero."""

    name: str
    points: list[tuple[float, float]]


class Panel(NamedTuple):
    """Curves in one pair of axes. `y` is in the base unit `unit`."""

    title: str
    x: str
    y: str
    unit: str
    series: list[Series]


def check_plot(path: Path) -> None:
    """Raise, before anything is measured, where `save` could not write there."""
    if path.suffix not in SUFFIXES:
        raise LLMBenchError(
            f"--plot {path}: no such kind of picture", hint=f"a name that ends in {', '.join(SUFFIXES)}"
        )
    if not path.absolute().parent.is_dir():
        raise LLMBenchError(f"--plot {path}: no such folder")
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise CannotRunError("--plot needs matplotlib, which is not installed", hint="pip install 'llmbench[plot]'")


def save(panels: list[Panel], path: Path) -> None:
    """All panels as one picture. Raises LLMBenchError where it cannot be written."""
    from matplotlib.figure import Figure

    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(6.4 * columns, 4.2 * rows), layout="constrained")
    for index, panel in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, index)
        for series in panel.series:
            axes.plot(*zip(*series.points, strict=True), marker="o", markersize=3, label=series.name)
        axes.set(title=panel.title, xlabel=panel.x, ylabel=f"{panel.y} ({panel.unit})", xscale="log", yscale="log")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(fontsize="small")
    try:
        figure.savefig(path)
    except OSError as problem:
        raise LLMBenchError(f"cannot write {path}: {problem.strerror}") from None


def terminal(panel: Panel, *, width: int = 64, height: int = 14) -> list[str]:
    """The panel as lines: a letter a curve, `*` where several meet."""
    points = [point for series in panel.series for point in series.points]
    if not points:
        return []
    (left, right), (low, high) = (_span([point[axis] for point in points]) for axis in (0, 1))
    grid = [[" "] * width for _ in range(height)]
    for letter, series in zip(LETTERS, panel.series, strict=False):
        for x, y in series.points:
            column = round((math.log(x) - left) / (right - left) * (width - 1))
            row = height - 1 - round((math.log(y) - low) / (high - low) * (height - 1))
            there = grid[row][column]
            grid[row][column] = letter if there in (" ", letter) else "*"
    labels = [""] * height
    labels[0], labels[-1] = f"{si(math.exp(high))}{panel.unit}", f"{si(math.exp(low))}{panel.unit}"
    if panel.unit == "s":
        labels[0], labels[-1] = _seconds(math.exp(high)), _seconds(math.exp(low))
    edge = max(map(len, labels))
    lines = [panel.title, *(f"{label:>{edge}} ┤{''.join(row)}" for label, row in zip(labels, grid, strict=True))]
    ends = f"{math.exp(left):,.0f}", f"{math.exp(right):,.0f}"
    lines.append(" " * edge + " └" + "─" * width)
    lines.append(" " * (edge + 2) + ends[0] + f"{panel.x:^{width - len(ends[0]) - len(ends[1])}}" + ends[1])
    names = [f"{letter} {series.name}" for letter, series in zip(LETTERS, panel.series, strict=False)]
    return [line.rstrip() for line in [*lines, " " * (edge + 2) + " · ".join(names)]]


def _span(values: list[float]) -> tuple[float, float]:
    """Logarithms of the ends, apart."""
    low, high = math.log(min(values)), math.log(max(values))
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _seconds(value: float) -> str:
    """Three digits in the unit that keeps them above one."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"
