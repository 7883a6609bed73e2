"""The answer of `llmbench bench`: sentences, tables and notes, made from the rows of an experiment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from llmbench.bench.results.metrics import METRICS, Line, MachineLimits, as_json, compared_with
from llmbench.cli.measured import (
    IMPLEMENTATION,
    extra_field,
    machine,
    machine_notes,
    one_table,
    paired_notes,
    place,
    speedup_note,
)
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, fitted

if TYPE_CHECKING:
    from pathlib import Path

    from llmbench.bench.experiments.experiment import Ask, Experiment
    from llmbench.errors import LLMBenchError
    from llmbench.measure.environment import Environment
    from llmbench.measure.reference import ReferenceMeasurements
    from llmbench.measure.results import Key, Row

__all__ = ["Measured", "caption", "document"]


class Measured(NamedTuple):
    """The rows of a run, and the facts about the run that the answer shows.

    `rows`: all rows, in the order of their groups. Rows that an earlier session wrote to the result file are included.
    `references`: the reference measurements of this session.
    `environment`: the machine and the software of this session.
    `earlier`: for each row of an earlier session, the reference measurements of that earlier session.
    `notes`: lines of text about the result file.
    `path`: the result file; None if there is none.
    `interruption`: the error that interrupted the run, or None.
    """

    rows: list[Row]
    references: ReferenceMeasurements
    environment: Environment
    earlier: Mapping[Key, ReferenceMeasurements]
    notes: list[str]
    path: Path | None = None
    interruption: KeyboardInterrupt | LLMBenchError | None = None


def document(
    experiment: Experiment, ask: Ask, measured: Measured, inputs: dict[str, Any], *, curves: bool = True
) -> Document:
    """Return the answer. Its first sentence answers the question of the experiment, and each table opens with a
    sentence on its rows. `curves`: whether the terminal shows the first curve."""
    import msgspec

    from llmbench.bench.results.sentences import about_cases, about_table, advice_once
    from llmbench.bench.results.sheets import baseline_of, remarks, sheets
    from llmbench.model.implementations.kernels import NO_MEANING, interpreted

    rows, environment = measured.rows, measured.environment
    limits = MachineLimits.on(measured.references, environment, ask.dtype, measured.earlier)
    baselines = baseline_of(rows, experiment)
    every = [
        Line(row, limits, baselines.get(index), row.extra | dict(experiment.derived(row, limits)))
        for index, row in enumerate(rows)
    ]
    lines = {line.row.key: line for line in every}
    extra = list(map(extra_field, experiment.columns))
    fields = fitted(_fields(experiment, extra), every)
    common, parts = sheets(rows, experiment.chart)
    x = experiment.chart.x if experiment.chart else None
    question = "\n".join(filter(None, (f"{experiment.name}: {experiment.question}", common)))
    also = {"reference_measurements": msgspec.to_builtins(limits.references)}
    tables = [one_table(every, extra)]
    blocks = []
    if experiment.summary is not None:
        summary = experiment.summary(ask, rows)
        tables.append(summary.table)
        blocks.append(Block(answer=summary.answer, headline=question, table=summary.table, notes=summary.notes))
        also[summary.key] = summary.rows
    elif len(parts) != 1:
        blocks.append(Block(answer=about_cases(rows, experiment.baseline), headline=question))
    for sheet in parts:
        sentences = [about_table([lines[row.key] for row in sheet.rows], experiment.baseline, x)]
        sentences.append(experiment.finding(sheet.rows))
        title = f"{sheet.title[:1].upper()}{sheet.title[1:]}." if sheet.title else ""
        blocks.append(
            Block(
                answer=" ".join(filter(None, (title, *sentences))),
                headline="" if blocks else question,
                table=table(fields, [lines[row.key] for row in sheet.rows]),
                notes=[*paired_notes(lines[row.key] for row in sheet.rows), *remarks(sheet.rows)],
            )
        )
    for block, answer in zip(blocks, advice_once([block.answer for block in blocks]), strict=True):
        block.answer = answer
    if blocks and _kernels_on_a_cpu(ask, every) and interpreted():
        blocks[0].answer = f"{NO_MEANING} {blocks[0].answer}"
    if curves:
        blocks += _curve(experiment, rows)
    notes = [*measured.notes, *machine_notes(limits, rows), *_notes(experiment, ask, every)]
    preset = f"{'quick' if ask.quick else 'full'} preset, with the shapes for a {'GPU' if ask.on_gpu else 'CPU'}"
    blocks.append(Block(lines=[*machine(environment, limits), preset], notes=notes))
    return Document(
        command="bench",
        version=2,
        inputs=inputs,
        rows_key="rows",
        rows=as_json(every, experiment.derived),
        blocks=blocks,
        environment=msgspec.to_builtins(environment),
        also=also,
        tables=tables,
    )


def _fields(experiment: Experiment, extra: Sequence[Field[Line]]) -> list[Field[Line]]:
    """Return the columns of the tables: the figures of the experiment stand behind the times."""
    metrics = compared_with(experiment.baseline) if experiment.baseline else METRICS
    names = [field.name for field in metrics]
    behind = names.index("prediction_error") + 1
    fields = [IMPLEMENTATION, *metrics[:behind], *extra, *metrics[behind:]]
    if experiment.chart is not None:
        name, label = experiment.chart
        fields.insert(0, Field(name, label, "count", lambda line: line.row.case[name]))
    return fields


def _curve(experiment: Experiment, rows: Sequence[Row]) -> list[Block]:
    """Return a block with the first curve of the rows, or no block if they have no curve."""
    from llmbench.bench.results.sheets import curves, sheets
    from llmbench.report.plots import terminal

    panels = curves(sheets(rows, experiment.chart)[1], experiment.chart)
    if not panels:
        return []
    more = [f"only the first of {len(panels)} panels is shown; --plot draws all panels"] if len(panels) > 1 else []
    return [Block(lines=[*terminal(panels[0]), *more])]


def _kernels_on_a_cpu(ask: Ask, lines: Sequence[Line]) -> bool:
    """Return whether an implementation with Triton kernels was timed on a CPU."""
    from llmbench.model.implementations import IMPLEMENTATIONS, described

    timed = {line.row.implementation for line in lines if line.row.status == "ok"}
    return not ask.on_gpu and any(described(name).traits.triton for name in timed & set(IMPLEMENTATIONS))


def _notes(experiment: Experiment, ask: Ask, lines: Sequence[Line]) -> Iterator[str]:
    """Yield notes about the implementations and the columns of the tables."""
    from llmbench.model.implementations.kernels import interpreted, on_a_cpu

    if ask.shape.model is not None:
        yield from ask.shape.model.notes
    if _kernels_on_a_cpu(ask, lines) and not interpreted():
        yield on_a_cpu()
    if ask.shape.model is not None and experiment.model_note:
        yield experiment.model_note
    yield from experiment.notes
    if any(line.speedup is not None for line in lines):
        yield speedup_note(experiment.baseline, "the row")


def caption(experiment: Experiment, measured: Measured) -> str:
    """Return the caption of a plot: the settings that all rows share, the machine, and the version of llmbench."""
    from llmbench.bench.results.sheets import sheets

    common = sheets(measured.rows, experiment.chart)[0]
    environment = measured.environment
    commit, code = environment.commit, f"llmbench {environment.llmbench}"
    if commit is not None:
        code += f" at {commit[:8]}{'+' * commit.endswith('+')}"
    return " · ".join(filter(None, (common, place(environment), code)))
