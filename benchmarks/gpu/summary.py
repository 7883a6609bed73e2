"""What is printed: a line a row as it comes, and the table of goals last."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.gpu.goals import OURS, TESTS, Outcome, judged, verdicts
from llmbench.measure.results import Header, Row
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.render import render

__all__ = ["begin", "faults", "line", "table"]


def begin(header: Header, notes: Sequence[str]) -> str:
    """Where this runs, and its reference measurements."""
    place = header.environment
    parts = {
        "device": place.device,
        "driver": place.driver,
        "torch": place.torch,
        "CUDA": place.cuda,
        "cuDNN": place.cudnn,
        "triton": place.triton,
        "ptxas": place.ptxas,
        "python": place.python,
        "commit": place.commit,
        "CPU": f"{place.cpu} ({place.cpu_count})",
    }
    lines = [" · ".join(f"{name} {value}" for name, value in parts.items() if value is not None)]
    if header.reference_measurements is not None and not header.inputs.get("rehearsal"):
        references = header.reference_measurements
        lines += [
            f"G {references.matmul.per_s / 1e12:,.0f} TFLOP/s ({references.matmul.description})",
            f"B {references.copy.per_s / 1e12:.2f} TB/s ({references.copy.description})",
            f"read {references.read.per_s / 1e12:.2f} TB/s ({references.read.description})",
            f"launch {references.launch.unit_s * 1e6:.1f} µs",
        ]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def line(row: Row, rehearsal: bool) -> str:
    """A row: what, and its time and rates, or why it has none."""
    about = f"{row.experiment} · {row.case.get('shape', row.case.get('suite'))} · {row.implementation}"
    if row.measurement is None:
        return f"{about}: {row.status}: {row.reason}"
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in row.extra.items())
    if row.experiment == TESTS:
        return f"{about}: {counts} in {row.measurement.median_s:.0f} s"
    if rehearsal:
        return f"{about}: rehearsed"
    time = row.measurement
    rates = [f"{time.median_s * 1e3:.4g} ms ({time.p10_s * 1e3:.4g}–{time.p90_s * 1e3:.4g}, n {time.n}, {time.clock})"]
    if row.flops_per_s:
        rates.append(f"{row.flops_per_s / 1e12:,.0f} TFLOP/s")
    if row.bytes_per_s:
        rates.append(f"{row.bytes_per_s / 1e12:.2f} TB/s")
    return f"{about}: {' · '.join([*rates, *time.remarks(), *row.kernels])}"


def faults(rows: Sequence[Row]) -> list[Row]:
    """What must not be: rows that are wrong or crashed, whoever's, and ours without room."""
    bad = ("INCORRECT", "FAILED")
    return [row for row in rows if row.status in bad or (row.status == "OOM" and row.implementation == OURS)]


def table(rows: Sequence[Row], *, rehearsal: bool, only: Sequence[str] = ()) -> None:
    """Print the goals, and what came, to stdout; with `only`, those of these experiments. A rehearsal's times mean
    nothing and are not shown."""
    outcomes = [each for each in judged(rows) if not only or each.goal.experiment in only]
    columns = [Column("experiment"), Column("case"), Column("goal"), Column("must"), Column("moonshot")]
    columns += [Column("measured (p10–p90)"), Column("verdict"), Column("note")]
    cells = [_cells(outcome, _told_apart(outcome, outcomes), rehearsal) for outcome in outcomes]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts(outcomes).items() if verdict != "–")
    lines = ["REHEARSAL: it ran, and no time of it means anything" if rehearsal else counts or "no goals"]
    lines += [line(row, rehearsal) for row in rows if row.experiment == TESTS]
    lines += [line(row, rehearsal) for row in faults(rows) if row.experiment != TESTS]
    block = Block(headline="goals", table=Table(columns=columns, rows=cells), lines=lines)
    render(Document(command="gpu_check", inputs={}, rows_key="goals", rows=[], blocks=[block]), "table", sys.stdout)


def _told_apart(outcome: Outcome, others: Sequence[Outcome]) -> str:
    """What of a shape is not so in every case of its experiment: nothing, where it has one."""
    shapes = [set(other.shape.split(", ")) for other in others if other.goal.experiment == outcome.goal.experiment]
    return ", ".join(part for part in outcome.shape.split(", ") if not all(part in shape for shape in shapes))


def _cells(outcome: Outcome, case: str, rehearsal: bool) -> list[str]:
    goal, value = outcome.goal, outcome.value
    front = [goal.experiment, case, goal.text(), goal.bound(goal.must), goal.bound(goal.moonshot)]
    if value is None:
        return [*front, "–", outcome.verdict, outcome.note[:70]]
    if rehearsal:
        return [*front, "–", "rehearsed", ""]
    measured = f"{value.median:.3f} ({value.p10:.3f}–{value.p90:.3f})"
    return [*front, measured, outcome.verdict, outcome.note]
