"""`llmbench bench`: which is better, and by how much?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from llmbench.cli.measured import (
    Device,
    DType,
    cells,
    check_file,
    columns_of,
    fail_where_wrong,
    machine,
    need_torch,
    one_table,
    place,
)
from llmbench.cli.options import As, answer
from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import plural

if TYPE_CHECKING:
    from llmbench.bench.experiments.experiment import Ask, Experiment, Group
    from llmbench.measure.environment import Environment
    from llmbench.measure.reference import ReferenceMeasurements
    from llmbench.measure.results import Key, Row, Scalar

Name = Annotated[str, typer.Argument(metavar="EXPERIMENT", help="What is compared; listed above.", show_default=False)]
Preset = Annotated[
    Literal["quick", "full"], typer.Option("--preset", help="quick: a few small cases; full: minutes of them.")
]
Kept = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Keep rows (not this answer) in a new file, JSON lines, as they come.",
        show_default=False,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option("--resume", metavar="FILE", help="Go on with a file that was broken off.", show_default=False),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw time and memory: .png, .svg or .pdf.", show_default=False),
]


def command(
    experiment: Name,
    preset: Preset = "quick",
    device: Device = "auto",
    dtype: DType = None,
    output: Kept = None,
    resume: Resume = None,
    plot: Plot = None,
    format: As = "table",
) -> None:
    """An experiment: rivals side by side, each checked, timed, and set beside its prediction.

    EXPERIMENT is attention (every kernel over lengths, masks and passes), norms, activations (at equal parameters),
    positions, heads (MHA, GQA, MQA, MLA at equal width), moe (against dense models; balance; routing), generate (first
    token, next token, whole answers), train (steps of a model; under torchrun with FSDP2 and tensor parallelism),
    collectives (under torchrun) or textbook (claims, and whether they hold here). What does not fit, does not exist
    here or is wrong is a row too. Exit code 1 where one is INCORRECT or FAILED. --output keeps what was measured
    whatever happens; `llmbench diff` compares two such files.

    Examples:

      llmbench bench attention --device cpu

      llmbench bench norms --device cpu --preset quick -o norms.jsonl

      llmbench bench activations --device cpu --format json
    """
    need_torch("bench")
    from llmbench.bench.experiments import find_experiment
    from llmbench.bench.experiments.experiment import Ask
    from llmbench.bench.results.sheets import curves, has_curves, sheets
    from llmbench.measure.ranks import join
    from llmbench.model.devices import device_of
    from llmbench.report.plots import check_plot, save, terminal

    path = _kept(output, resume)
    check_file("--output", output)
    check_file("--plot", plot)
    if plot is not None:
        check_plot(plot)
    of, where = find_experiment(experiment), device_of(device)
    if where.type == "meta":
        raise LLMBenchError("--device meta: what has no memory takes no time", hint="cpu, cuda or auto")
    ranks, where = join(of.processes, where, experiment)
    ask = Ask(
        quick=preset == "quick",
        device=where,
        dtype=dtype or ("bf16" if where.type == "cuda" else "fp32"),
        ranks=ranks,
    )
    groups = of.groups(ask)
    if plot is not None and not has_curves([group.case for group in groups], of.chart):
        where_none = " in this preset" if of.chart else ""
        raise LLMBenchError(f"--plot: nothing of {experiment}{where_none} is a curve", hint="leave --plot out")
    inputs: dict[str, Any] = {"experiment": experiment, "preset": preset, "device": str(where), "dtype": ask.dtype}
    inputs |= {"ranks": ranks.size} if ranks.size > 1 else {}
    measured = _measured(groups, ask, inputs, path, resume=resume is not None)
    if not ranks.first:
        return
    document = _document(of, ask, measured, inputs)
    common, parts = sheets(measured.rows, of.chart)
    panels = curves(parts, of.chart)
    if panels and plot is None:
        more = [f"the first of {len(panels)} panels; --plot draws them all"] if len(panels) > 1 else []
        document.blocks.insert(-1, Block(lines=[*terminal(panels[0]), *more]))
    answer(document, format, None)
    if path is not None:
        sys.stderr.write(f"{len(measured.rows)} rows in {path}\n")
    if plot is not None and panels:
        save(panels, plot, title=f"{of.name}: {of.question}", caption=_caption(common, measured.environment))
        sys.stderr.write(f"wrote {plot}\n")
    elif plot is not None:
        sys.stderr.write(f"{plot} is not written: what was measured is no curve yet\n")
    _end(measured, path)


class _Measured(NamedTuple):
    """What there is to show once nothing more is measured: rows in the order of their groups, those of earlier sessions
    too; `earlier`, the reference measurements of these; `notes`, what a reader must know of the file; and what broke it
    off, if anything did."""

    rows: list[Row]
    references: ReferenceMeasurements
    environment: Environment
    earlier: dict[Key, ReferenceMeasurements]
    notes: list[str]
    broken_off: KeyboardInterrupt | CannotRunError | None


def _measured(
    groups: Sequence[Group], ask: Ask, inputs: dict[str, Any], path: Path | None, *, resume: bool
) -> _Measured:
    """Measure what the file does not have yet. Whatever breaks it off, what was measured before is not lost."""
    from llmbench.bench.experiments.experiment import run
    from llmbench.bench.results.words import in_words
    from llmbench.measure.clock import clock_for
    from llmbench.measure.environment import environment
    from llmbench.measure.reference import measure_references
    from llmbench.measure.results import Header
    from llmbench.model.formats import DTYPES

    clock, found = ask.ranks.clock(ask.device), environment(ask.device)
    with _progress(len(groups)) as told:

        def tell(group: Group) -> None:
            told(" · ".join(in_words(group.case)))

        told("limits of the machine")
        references = measure_references(clock_for(ask.device), DTYPES[ask.dtype], budget_s=0.1 if ask.quick else 0.3)
        header = Header(command="bench", inputs=inputs, environment=found, reference_measurements=references)
        rows: dict[Key, Row] = {}
        earlier: dict[Key, ReferenceMeasurements] = {}
        notes: list[str] = []
        broken_off: KeyboardInterrupt | CannotRunError | None = None
        with nullcontext() if path is None else ask.ranks.store(path, header, resume=resume) as store:
            if store is not None and store.existing is not None:
                rows = store.existing.by_key()
                sessions = store.existing.headers_by_key()
                earlier = {
                    key: head.reference_measurements
                    for key, head in sessions.items()
                    if head and head.reference_measurements
                }
                notes = [*store.notes, *(f"left out: {damage}" for damage in store.existing.damaged)]
            try:
                for row in run(groups, clock=clock, references=references, store=store, started=tell):
                    rows[row.key] = row
                    earlier.pop(row.key, None)
            except (KeyboardInterrupt, CannotRunError) as problem:
                broken_off = problem
    if earlier:
        notes.append(f"{plural(len(earlier), 'row')} of earlier sessions: held to the limits measured then")
    order = {key: index for index, key in enumerate(key for group in groups for key in group.row_keys())}
    ordered = sorted(rows.values(), key=lambda row: order.get(row.key, len(order)))
    return _Measured(ordered, references, found, earlier, notes, broken_off)


def _end(measured: _Measured, path: Path | None) -> None:
    """With the exit code, and what there is to say of it, once everything is shown."""
    if isinstance(measured.broken_off, KeyboardInterrupt):
        kept = f"`--resume {path}` goes on" if path else "with --output they would have been kept"
        sys.stderr.write(f"interrupted: {len(measured.rows)} rows were measured; {kept}\n")
        raise typer.Exit(130)
    if measured.broken_off is not None:
        raise measured.broken_off
    fail_where_wrong(measured.rows)


def _kept(output: Path | None, resume: Path | None) -> Path | None:
    """The file that rows go to."""
    if output is not None and resume is not None:
        raise LLMBenchError("--output begins a file and --resume goes on with one", hint="give one of them")
    if resume is not None and not resume.is_file():
        raise LLMBenchError(f"--resume {resume}: no such file", hint="--output begins one")
    return output or resume


@contextmanager
def _progress(count: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr where that is a terminal; what is yielded moves it on and says what is next."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=count + 1)

        def told(text: str) -> None:
            bar.update(task, description=text, advance=1)

        yield told


def _document(of: Experiment, ask: Ask, measured: _Measured, inputs: dict[str, Any]) -> Document:
    import msgspec

    from llmbench.bench.results.metrics import Yardsticks, figures, plain
    from llmbench.bench.results.sheets import baseline_of, remarks, sheets
    from llmbench.model.implementations.kernels import on_a_cpu

    rows, environment = measured.rows, measured.environment
    yardsticks = Yardsticks.of(measured.references, environment, ask.dtype, measured.earlier)
    baselines = baseline_of(rows, of)
    by_key = {rows[index].key: baseline for index, baseline in baselines.items()}
    common, found = sheets(rows, of.chart)
    x = [Column(of.chart.label, "count")] if of.chart else []

    def figure(row: Row, key: str) -> Scalar:
        return (row.extra | dict(of.derived(row, yardsticks))).get(key)

    own = [(Column(title, unit, sparse=True), partial(figure, key=key)) for key, title, unit in of.columns]
    known = {row.key: figures(row, yardsticks, by_key.get(row.key)) for row in rows}
    usual = columns_of(known.values())
    columns = [*x, Column("implementation", name=True), *(column for column, _ in own), *usual.values()]
    columns += [Column(f"× {of.baseline}", "ratio", sparse=True)] if of.baseline else []
    blocks = []
    for sheet in found:
        table = []
        for row in sheet.rows:
            first = [row.case[of.chart.x]] if of.chart else []
            added = [shown(row) for _, shown in own]
            last = [known[row.key].speedup] if of.baseline else []
            table.append([*first, row.implementation, *added, *cells(row, known[row.key], usual), *last])
        lines = list(remarks(sheet.rows))
        blocks.append(Block(headline=sheet.title, table=Table(columns=columns, rows=table), lines=lines))
    question = f"{of.name}: {of.question}\n{common}" if common else f"{of.name}: {of.question}"
    size = "the quick preset" if ask.quick else "the full preset"
    about = [*machine(environment, yardsticks, rows), f"{size}, with the shapes of a {'GPU' if ask.on_gpu else 'CPU'}"]
    if not ask.on_gpu and any(row.implementation in ("flash", "fused") and row.status == "ok" for row in rows):
        about.append(on_a_cpu())
    if any(each.speedup is not None for each in known.values()):
        about.append(f"× {of.baseline}: how many times as long that takes, sample by sample")
    about += of.notes
    also = {"reference_measurements": msgspec.to_builtins(yardsticks.references)}
    tables = [one_table(rows, [known[row.key] for row in rows], own)]
    if of.summary is not None:
        all_of_it = of.summary(ask, rows)
        tables.append(all_of_it.table)
        blocks.append(Block(headline=all_of_it.key, table=all_of_it.table, lines=all_of_it.lines))
        also[all_of_it.key] = all_of_it.rows
    return Document(
        command="bench",
        version=2,
        inputs=inputs,
        rows_key="rows",
        rows=plain(rows, yardsticks, baselines, of.derived),
        blocks=[Block(headline=question), *blocks, Block(lines=[*about, *measured.notes])],
        environment=msgspec.to_builtins(environment),
        also=also,
        tables=tables,
    )


def _caption(common: str, environment: Environment) -> str:
    """What a picture's figures depend on."""
    commit, code = environment.commit, f"llmbench {environment.llmbench}"
    if commit is not None:
        code += f" at {commit[:8]}{'+' * commit.endswith('+')}"
    return " · ".join(filter(None, (common, place(environment), code)))
