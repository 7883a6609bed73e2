"""Answers of `llmbench validate`: measured figures next to ours, as rows and tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, inside, record, records
from llmbench.report.units import plural, shown
from llmbench.validation.comparison import Figure, Item
from llmbench.validation.kinds import Validation
from llmbench.validation.metrics import Metrics, Summary, answered, by_group, by_quantity, figures_of, metrics

METRICS: tuple[Field[Metrics], ...] = (
    Field("median_ape", "median error", "percent", description="median of the absolute relative errors"),
    Field("mape", "mean error", "percent", description="mean of the absolute relative errors", spare=3),
    Field("worst", "worst", "percent", description="largest absolute relative error"),
    Field("within_1pct", "within 1%", "percent", description="share of figures with an error of at most 1%", spare=2),
    Field("within_3pct", "within 3%", "percent", description="share of figures with an error of at most 3%"),
    Field(
        "within_10pct", "within 10%", "percent", description="share of figures with an error of at most 10%", spare=1
    ),
    Field("exact", "exact", "percent", description="share of figures that are equal, up to the rounding of the file"),
)
"""The metrics of some figures. They are fractions of one, or null if there are no figures."""

SUMMARIES: tuple[Field[Summary], ...] = (
    Field("value", "", value=lambda summary: summary.what, description="the value of the column, or the quantity"),
    Field("rows", "rows", "count", description="number of rows"),
    Field("answered", "answered", "count", description="number of rows with a figure of llmbench"),
    Field("metrics", value=lambda summary: record(METRICS, summary.metrics), description="their metrics"),
)

FIGURES: tuple[Field[Figure], ...] = (
    Field("quantity", description="what was measured, with its unit"),
    Field("measured", description="measured figure"),
    Field("ours", description="figure of llmbench"),
    Field("error", description="(ours − measured) / measured"),
    Field("exact", description="whether the figures are equal, up to the rounding of the measured figure"),
)
"""The fields of the objects in the field `figures`."""


def _figure(item: Item) -> Figure | None:
    return None if item.answer is None else item.answer.figures[0]


def _first(name: str) -> Any:
    """Return a function that gives a field of the first figure of a row, or None if the row has no figure."""
    return lambda item: None if _figure(item) is None else getattr(_figure(item), name)


FIELDS: tuple[Field[Item], ...] = (
    Field("line", "line", "count", description="line of the row in the file", spare=2),
    Field("name", "row", description="what the row is about", wraps=True),
    Field("group", "group", sparse=True, description="value of the column of `--by`; null without `--by`", spare=3),
    Field("quantity", "quantity", value=_first("quantity"), description="what was measured, with its unit", spare=1),
    Field("measured", "measured", "number", value=_first("measured"), text=lambda item: _text(item, "measured"),
          description="measured figure; null if llmbench refuses the row"),
    Field("ours", "ours", "number", value=_first("ours"), text=lambda item: _text(item, "ours"),
          description="figure of llmbench; null if it refuses the row"),
    Field("error", "error", "error", value=_first("error"), description="(ours − measured) / measured"),
    Field("exact", value=_first("exact"),
          description="whether the figures are equal, up to the rounding of the measured figure"),
    Field("doubt", value=lambda item: None if item.answer is None else item.answer.doubt or None,
          description="why the settings of the row are uncertain, or null. The metrics leave out such a row"),
    Field("note", value=lambda item: None if item.answer is None else item.answer.note or None,
          description="what the figure of llmbench leaves out, or null"),
    Field("assumed", value=lambda item: None if item.answer is None else item.answer.assumed or None,
          description="kernels, attention, precision and loss that llmbench assumes, or null"),
    Field("reason", description="why llmbench refuses the row, or null"),
    Field("figures", value=lambda item: [] if item.answer is None else records(FIGURES, item.answer.figures),
          description="all figures of the row; the first one is `measured` and `ours`"),
    Field("parts", value=lambda item: {} if item.answer is None else item.answer.parts,
          description="terms of `ours` by name, in its unit; for `tokens`, the bytes of the memory that is divided"),
)  # fmt: skip
"""The fields of a row."""


IN_PARTS = 3
"""The largest number of answered rows of which the screen shows the terms."""


def _text(item: Item, name: str) -> str | None:
    """Return a figure with its unit. The name of its quantity ends with the unit."""
    figure = _figure(item)
    if figure is None:
        return None
    return shown(getattr(figure, name), "gib") + " GiB" if figure.quantity.endswith("bytes") else None


def document(validation: Validation, inputs: dict[str, Any], *, bound: float | None) -> Document:
    """Return the answer for a file. bound: the largest error that is allowed, as a fraction of one, or None."""
    items = validation.items
    certain = metrics(figures_of(items))
    quantities = by_quantity(items)
    return Document(
        command="validate",
        inputs=inputs,
        rows_key="items",
        rows=records(FIELDS, items),
        also={
            "kind": validation.file.kind,
            "file": validation.file.name,
            "rows": len(items),
            "answered": answered(items),
            "metrics": record(METRICS, certain),
            "quantities": records(SUMMARIES, quantities),
            "groups": records(SUMMARIES, by_group(items)),
        },
        blocks=_blocks(validation, certain, quantities, bound),
        tables=[table(FIELDS, items)],
    )


def within(validation: Validation, bound: float) -> bool:
    """Return whether a row was answered, and no row whose settings are certain has an error over `bound`."""
    figures = figures_of(validation.items)
    return bool(figures) and all(abs(figure.error) <= bound for figure in figures)


def _blocks(validation: Validation, certain: Metrics, quantities: list[Summary], bound: float | None) -> list[Block]:
    items = validation.items
    some = [item for item in items if item.answer is not None]
    uncertain = [item for item in some if item.answer is not None and item.answer.doubt]
    parts = [f"llmbench answers {len(some)} of {plural(len(items), 'row')}"]
    if certain.median_ape is not None:
        without = f"without {plural(len(uncertain), 'row')} with uncertain settings, " if uncertain else ""
        worst = shown(certain.worst, "percent")
        parts.append(f"{without}the median error is {shown(certain.median_ape, 'percent')}, the worst is {worst}")
        parts.append(f"{shown(certain.exact, 'percent')} of the figures are equal up to rounding")
    if bound is not None:
        verdict = "no error is over" if within(validation, bound) else "not all errors are within"
        parts.append(f"{verdict} the bound of {shown(bound, 'percent')}")
    columns = [field for field in FIELDS if field.name != "reason"]
    sure = [item for item in some if item not in uncertain]
    blocks = [
        Block(
            answer="; ".join(parts),
            headline=f"kind of file: {validation.file.kind} · format: {validation.file.name}",
            table=table(columns, sure) if sure else None,
            lines=_lines(some),
        )
    ]
    if len(some) <= IN_PARTS:
        blocks += filter(None, map(_parts_block, some))
    groups = by_group(items)
    if groups:
        blocks.append(_summary_block("by group", groups))
    if len(quantities) > 1:
        blocks.append(_summary_block("by quantity", quantities))
    if uncertain:
        headline = f"{plural(len(uncertain), 'row')} with uncertain settings, which the metrics leave out"
        blocks.append(Block(headline=headline, table=table(columns, uncertain)))
        blocks.append(_reasons("why they are uncertain", uncertain, lambda item: item.answer and item.answer.doubt))
    refused = [item for item in items if item.answer is None]
    if refused:
        blocks.append(_reasons("refused rows", refused, lambda item: item.reason))
    return blocks


def _lines(items: list[Item]) -> list[str]:
    """Return what the figures assume and what they leave out, each text once."""
    answers = [item.answer for item in items if item.answer is not None]
    return list(dict.fromkeys(filter(None, [*(own.assumed for own in answers), *(own.note for own in answers)])))


def _parts_block(item: Item) -> Block | None:
    """Return a table with the terms of our figures for a row, or None if they are not in bytes or not known."""
    figure, parts = _figure(item), item.answer.parts if item.answer is not None else {}
    if figure is None or not parts or not figure.quantity.endswith(("bytes", "tokens")):
        return None
    columns: list[Field[tuple[str, float]]] = [
        Field("part", "part", value=lambda part: part[0].replace("_", " ")),
        Field("bytes", "ours", "gib", value=lambda part: part[1]),
    ]
    rows = [part for part in parts.items() if part[1]]
    return Block(headline=f"line {item.line}: the terms that llmbench computes", table=table(columns, rows))


def _reasons(headline: str, items: list[Item], reason: Callable[[Item], Any]) -> Block:
    """Return a table with a reason for each row."""
    columns: list[Field[Item]] = [
        Field("line", "line", "count"),
        Field("name", "row", wraps=True),
        Field("reason", "reason", wraps=True, value=reason),
    ]
    return Block(headline=headline, table=table(columns, items))


def _summary_block(headline: str, summaries: list[Summary]) -> Block:
    columns = [field for field in SUMMARIES if field.name != "metrics"]
    measures = inside("metrics", *METRICS)
    return Block(headline=headline, table=table([*columns, *measures], summaries))
