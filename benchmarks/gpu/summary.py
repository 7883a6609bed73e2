"""The printed output of a run: one line per measured row, and the table of goals at the end."""

from __future__ import annotations

import io
from collections.abc import Sequence

from benchmarks.gpu.goals import OURS, TESTS, Outcome, judge, verdicts
from llmbench.measure.results import Header, Row
from llmbench.report.document import Block, Document, Table
from llmbench.report.fields import Field
from llmbench.report.render import render

__all__ = ["assemblers", "faults", "heading", "line", "table"]


def heading(header: Header, notes: Sequence[str]) -> str:
    """Return the environment and the reference measurements as text."""
    environment = header.environment
    parts = {
        "device": environment.device,
        "driver": environment.driver,
        "torch": environment.torch,
        "CUDA": environment.cuda,
        "cuDNN": environment.cudnn,
        "triton": environment.triton,
        "ptxas": environment.ptxas,
        "python": environment.python,
        "commit": environment.commit,
        "CPU": f"{environment.cpu} ({environment.cpu_count})",
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
        state = references.matmul.measurement.conditions
        if state is not None and state.sm_clock_hz_median is not None and state.power_w_max is not None:
            lines.append(
                f"in G: SM clock {state.sm_clock_hz_median / 1e9:.2f} GHz, power at most {state.power_w_max:.0f} W"
            )
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def line(row: Row, rehearsal: bool) -> str:
    """Return a row as one line of text: its time and rates, or the reason why it has no time."""
    title = f"{row.experiment} · {row.case.get('shape', row.case.get('suite'))} · {row.implementation}"
    if row.measurement is None:
        return f"{title}: {row.status}: {row.reason}"
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in row.extra.items())
    if row.experiment == TESTS:
        return f"{title}: {counts} in {row.measurement.median_s:.0f} s"
    if rehearsal:
        return f"{title}: rehearsed"
    time = row.measurement
    rates = [f"{time.median_s * 1e3:.4g} ms ({time.p10_s * 1e3:.4g}–{time.p90_s * 1e3:.4g}, n {time.n}, {time.clock})"]
    if row.flops_per_s:
        rates.append(f"{row.flops_per_s / 1e12:,.0f} TFLOP/s")
    if row.bytes_per_s:
        rates.append(f"{row.bytes_per_s / 1e12:.2f} TB/s")
    return f"{title}: {' · '.join([*rates, *time.remarks(), *row.kernels])}"


def faults(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that make a run fail: the INCORRECT and FAILED rows of all candidates, and the OOM rows of our
    kernels."""
    errors = ("INCORRECT", "FAILED")
    return [row for row in rows if row.status in errors or (row.status == "OOM" and row.implementation == OURS)]


def table(rows: Sequence[Row], *, rehearsal: bool, only: Sequence[str] = ()) -> str:
    """Return the goals and their outcomes as text. `only`: the names of the experiments to show; if empty, all
    experiments are shown. The times of a rehearsal are not shown, because they have no meaning."""
    outcomes = [outcome for outcome in judge(rows) if not only or outcome.goal.experiment in only]
    headings = ("experiment", "case", "goal", "must", "moonshot", "measured (p10–p90)", "verdict", "note")
    columns: list[Field[str]] = [Field(heading, heading) for heading in headings]
    cells = [_cells(outcome, _distinguishing(outcome, outcomes), rehearsal) for outcome in outcomes]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts(outcomes).items() if verdict != "–")
    lines = ["REHEARSAL: the run ended; its times have no meaning" if rehearsal else counts or "no goals"]
    lines += [line(row, rehearsal) for row in rows if row.experiment == TESTS]
    lines += [line(row, rehearsal) for row in faults(rows) if row.experiment != TESTS]
    block = Block(headline="goals", table=Table(columns=columns, rows=cells), lines=lines)
    text = io.StringIO()
    render(Document(command="gpu_check", inputs={}, rows_key="goals", rows=[], blocks=[block]), "table", text)
    return text.getvalue().rstrip("\n")


def assemblers(rows: Sequence[Row], *, rehearsal: bool) -> str:
    """Return the times of our kernels under each assembler as text, one line per case. Each time but the first has its
    ratio to the first."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        if "ptxas" in row.case:
            cases.setdefault(f"{row.experiment} · {row.case['shape']} · {row.implementation}", []).append(row)
    lines = ["our kernels under each assembler"]
    for title, compared in cases.items():
        first = compared[0].seconds
        texts: list[str] = []
        for row in compared:
            text = f"{row.status}: {row.reason}" if row.seconds is None else "rehearsed"
            if row.seconds is not None and not rehearsal:
                text = f"{row.seconds * 1e3:.4g} ms" + (f" ({row.seconds / first:.3f}×)" if texts and first else "")
            texts.append(f"ptxas {row.case['ptxas']}: {text}")
        lines.append(f"  {title}: {'; '.join(texts)}")
    return "\n".join(lines)


def _distinguishing(outcome: Outcome, others: Sequence[Outcome]) -> str:
    """Return the parts of a shape in which the cases of its experiment differ. If the experiment has only one case,
    return an empty text."""
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
