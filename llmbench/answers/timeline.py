"""The timeline of a training step, as rows of JSON and CSV, and as a table with bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from llmbench.report.document import Block, table
from llmbench.report.fields import Field
from llmbench.report.units import size

if TYPE_CHECKING:
    from llmbench.sizing.timeline import Step

STEPS: tuple[Field[Step], ...] = (
    Field("part", description="part of the training step: `forward`, `backward` or `optimizer`"),
    Field("op", description="the running op or layer; the loss and the layers have their names in the op table"),
    Field("kind", description="kind of the layer; empty outside the layers"),
    Field("layer", description="index of the layer; null outside the layers"),
    Field(
        "resident_bytes",
        description="bytes that stay allocated when the op ends: weights, optimizer states, gradients, and saved "
        "activations. In the backward pass, also the activations that the op is about to free",
    ),
    Field(
        "temporary_bytes",
        description="bytes that exist only while the op runs; null in the forward pass, where they are not computed",
    ),
    Field("total_bytes", description="`resident_bytes` + `temporary_bytes`; the largest total is `peak_bytes`"),
)

BAR = 12
"""The length of the bar of the peak, in characters."""
RUNS = 8
"""The largest number of rows for the layers of one pass."""


class _Row(NamedTuple):
    """One row for people: consecutive layers of one pass, or one op outside the layers.

    step: the step with the most bytes. name: the op, or the indices of the layers.
    least_bytes, peak_bytes: the smallest and the largest number of bytes of the timeline, where the bars begin and end.
    """

    step: Step
    name: str
    least_bytes: int
    peak_bytes: int

    @property
    def bar(self) -> str:
        """The bar of the bytes above `least_bytes`: `#` for resident bytes, `:` for temporary bytes."""
        room = max(1, self.peak_bytes - self.least_bytes)
        resident = round(BAR * (self.step.resident_bytes - self.least_bytes) / room)
        whole = round(BAR * (self.step.total_bytes - self.least_bytes) / room)
        mark = "<peak" if self.step.total_bytes == self.peak_bytes else ""
        return "#" * resident + ":" * (whole - resident) + mark


def timeline_block(steps: Sequence[Step], headline: str = "") -> Block:
    """Return a block with the timeline for people. Consecutive layers share a row, which shows their largest total."""
    least, peak = min(step.resident_bytes for step in steps), max(step.total_bytes for step in steps)
    rows = [row for _, group in groupby(steps, key=lambda step: step.part) for row in _rows(list(group), least, peak)]
    columns: tuple[Field[_Row], ...] = (
        Field("part", "pass", value=lambda row: row.step.part),
        Field("op", "op", value=lambda row: row.name),
        Field("resident_bytes", "resident", "gib", value=lambda row: row.step.resident_bytes, spare=2),
        Field("temporary_bytes", "temporary", "gib", value=lambda row: row.step.temporary_bytes, spare=1),
        Field("total_bytes", "total", "gib", value=lambda row: row.step.total_bytes),
        Field("bar", f"above {size(least)}", value=lambda row: row.bar),
    )
    lines = [
        f"bars: # resident, : temporary; {size(least)} are allocated during the whole step",
        "a row of several layers shows the layer with the most bytes; in the forward pass, memory that exists only "
        "while an op runs is not counted",
    ]
    return Block(headline=headline, table=table(columns, rows), lines=lines)


def _rows(steps: list[Step], least: int, peak: int) -> Iterator[_Row]:
    """Return the rows of one pass."""
    for stack, group in groupby(steps, key=_stack):
        run = list(group)
        length = 1 if not stack else -(-len(run) // RUNS)
        for start in range(0, len(run), length):
            part = run[start : start + length]
            yield _Row(max(part, key=lambda step: step.total_bytes), _name(part, stack), least, peak)


def _stack(step: Step) -> str:
    """Return the name of the stack that contains the layer of a step: `layers`, `encoder.layers`, or an empty text."""
    return "" if step.layer is None else step.op.partition(f".{step.layer}")[0]


def _name(steps: list[Step], stack: str) -> str:
    if not stack:
        return steps[0].op
    first, last = steps[0].layer, steps[-1].layer
    return f"{stack}.{first}" if first == last else f"{stack}.{first}–{last}"
