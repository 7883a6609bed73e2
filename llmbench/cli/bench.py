"""`llmbench bench`: run an experiment, which checks, times and compares several implementations."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmbench.bench.experiments import EXPERIMENTS, AboutExperiment
from llmbench.cli.bench_document import Measured, caption, document
from llmbench.cli.measured import (
    Device,
    DType,
    ModelName,
    check_file,
    chosen_model,
    fail_where_wrong,
    join_ranks,
    listed,
    need_torch,
)
from llmbench.cli.messages import say
from llmbench.cli.options import As, Counts, Set, answer, prints_tables, sequence_counts, token_counts
from llmbench.errors import LLMBenchError
from llmbench.report.units import plural

if TYPE_CHECKING:
    from llmbench.bench.experiments.experiment import Ask, Group
    from llmbench.measure.ranks import Follower
    from llmbench.measure.reference import ReferenceMeasurements
    from llmbench.measure.results import Key, Row

Name = Annotated[
    str, typer.Argument(metavar="EXPERIMENT", help="The experiment to run, from the list above.", show_default=False)
]
Preset = Annotated[
    Literal["quick", "full"],
    typer.Option("--preset", help="quick: run a few small cases. full: run all cases (takes minutes)."),
]
Lengths = Annotated[
    Counts | None,
    typer.Option(
        "--seq",
        metavar="TOKENS",
        help="Tokens, for example 8192 or 8k. A sweep: 8k,32k,128k, or 8k..128k, which doubles up to the last.",
        parser=token_counts,
        show_default=False,
    ),
]
Sequences = Annotated[
    Counts | None,
    typer.Option(
        "--batch",
        metavar="N",
        help="Number of sequences. A sweep: 1,8,64, or 1..64, which doubles up to the last.",
        parser=sequence_counts,
        show_default=False,
    ),
]
NewResultFile = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write each row to a new result file (JSON lines) as soon as the row is measured.",
        show_default=False,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="FILE",
        help="Continue an interrupted run: measure the rows that its result file lacks, and append them to the file.",
        show_default=False,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option(
        "--plot", metavar="FILE", help="Plot time and memory into a .png, .svg or .pdf file.", show_default=False
    ),
]


@prints_tables
def command(
    experiment: Name,
    preset: Preset = "quick",
    model: ModelName = None,
    set: Set = None,
    seq: Lengths = None,
    batch: Sequences = None,
    device: Device = "auto",
    dtype: DType = None,
    output: NewResultFile = None,
    resume: Resume = None,
    plot: Plot = None,
    format: As = "table",
) -> None:
    """Run an experiment: check and time several implementations, and compare each time with its prediction.

    EXPERIMENT is one of

    {EXPERIMENTS}

    --model, --seq and --batch replace the shapes of the preset. They set

    {SHAPES}

    An implementation also gets a row if it runs out of memory (OOM), cannot run on this machine (n/a), gives a wrong
    result (INCORRECT) or raises another error (FAILED). The exit code is 1 if a row is INCORRECT or FAILED. --output
    writes the rows to a result file. `llmbench diff` compares two result files.

    Examples:

      llmbench bench attention --device cpu

      llmbench bench heads --device cpu --model smollm2-135m --seq 64

      llmbench bench norms --device cpu --preset quick -o norms.jsonl

      llmbench bench norms --device cpu --format json
    """
    need_torch("bench")
    from llmbench.bench.experiments import find_experiment
    from llmbench.bench.experiments.experiment import Ask, Shape
    from llmbench.bench.results.sheets import curves, has_curves, sheets
    from llmbench.model.devices import device_of
    from llmbench.report.plots import save

    path = _result_file(output, resume)
    chosen, where = find_experiment(experiment), device_of(device)
    shape = Shape(
        model=chosen_model(model, set), changes=tuple(set or ()), seq_lens=tuple(seq or ()), batches=tuple(batch or ())
    )
    ranks, where = join_ranks(chosen.processes, where, experiment)
    # Only the first rank writes files, so it alone checks them. Another rank could find the file that the first rank
    # has just created.
    ranks.agreed(lambda: _check_files(output, resume, plot) if ranks.first else None)
    ask = Ask(
        quick=preset == "quick",
        device=where,
        dtype=dtype or ("bf16" if where.type == "cuda" else "fp32"),
        ranks=ranks,
        shape=shape,
    )
    groups = chosen.groups(ask)
    if plot is not None and not has_curves([group.case for group in groups], chosen.chart):
        preset_only = f" in the {preset} preset" if chosen.chart else ""
        raise LLMBenchError(f"--plot: {experiment} has no sweep to plot{preset_only}", hint="leave out --plot")
    inputs: dict[str, Any] = {"experiment": experiment, "preset": preset, "device": str(where), "dtype": ask.dtype}
    inputs |= {"model": model, "spec": shape.digest, "set": set or []}
    inputs |= {"seq_len": seq.as_input if seq else None, "batch": batch.as_input if batch else None}
    inputs |= {"ranks": ranks.size} if ranks.size > 1 else {}
    measured = _measured(groups, ask, inputs, path, resume=resume is not None)
    if not ranks.first:
        return
    answer(document(chosen, ask, measured, inputs, curves=plot is None), format, None)
    if measured.path is not None:
        say(f"{len(measured.rows)} rows in {measured.path}")
    if plot is not None:
        panels = curves(sheets(measured.rows, chosen.chart)[1], chosen.chart)
        if panels:
            save(panels, plot, title=f"{chosen.name}: {chosen.question}", caption=caption(chosen, measured))
            say(f"wrote {plot}")
        else:
            say(f"{plot} not written: fewer than two x values measured so far")
    _end(measured)


def _shapes(about: AboutExperiment) -> str:
    """Return a text that says what --model, --seq and --batch set in an experiment."""
    return "; ".join(f"{option}: {meaning}" for option, meaning in about.shape_options.items()) or "nothing"


command.__doc__ = (
    (command.__doc__ or "")
    .replace("{EXPERIMENTS}", listed({name: about.what for name, about in EXPERIMENTS.items()}))
    .replace("{SHAPES}", listed({name: _shapes(about) for name, about in EXPERIMENTS.items()}))
)


def _measured(
    groups: Sequence[Group], ask: Ask, inputs: dict[str, Any], path: Path | None, *, resume: bool
) -> Measured:
    """Measure the rows that the result file does not have yet. If the run is interrupted, return the rows so far."""
    from llmbench.bench.experiments.experiment import run
    from llmbench.bench.results.words import in_words
    from llmbench.measure.clock import clock_for
    from llmbench.measure.environment import environment
    from llmbench.measure.reference import measure_references
    from llmbench.measure.results import Header
    from llmbench.measure.store import Store
    from llmbench.model.formats import DTYPES

    clock, this_machine = ask.ranks.clock(ask.device), environment(ask.device)
    with _progress(len(groups)) as advance:

        def started(group: Group) -> None:
            advance(" · ".join(in_words(group.case)))

        advance("reference measurements")
        references = measure_references(clock_for(ask.device), DTYPES[ask.dtype], budget_s=0.1 if ask.quick else 0.3)
        header = Header(command="bench", inputs=inputs, environment=this_machine, reference_measurements=references)
        rows: dict[Key, Row] = {}
        earlier: dict[Key, ReferenceMeasurements] = {}
        notes: list[str] = []
        interruption: KeyboardInterrupt | LLMBenchError | None = None
        store: Store | Follower | None = None
        written = True
        try:
            with nullcontext() if path is None else ask.ranks.store(path, header, resume=resume) as store:
                if store is not None and store.existing is not None:
                    known = {key for group in groups for key in group.row_keys()}
                    existing = store.existing.by_key()
                    rows = {key: row for key, row in existing.items() if key in known}
                    sessions = store.existing.headers_by_key()
                    earlier = {
                        key: head.reference_measurements
                        for key, head in sessions.items()
                        if head and head.reference_measurements and key in known
                    }
                    notes = [f"ignored: {damage}" for damage in store.existing.damaged]
                    if len(rows) < len(existing):
                        notes.append(
                            f"ignored: {plural(len(existing) - len(rows), 'row')} of cases that are not in this run"
                        )
                try:
                    for row in run(groups, clock=clock, references=references, store=store, started=started):
                        rows[row.key] = row
                        earlier.pop(row.key, None)
                except (KeyboardInterrupt, LLMBenchError) as problem:
                    interruption = problem
        except LLMBenchError as problem:
            if store is None:  # the file was not opened
                raise
            interruption, written = problem, False
    if store is not None:
        notes += store.notes
        path = store.path if written else None
        if isinstance(store, Store) and isinstance(interruption, LLMBenchError):
            rows |= {row.key: row for row in store.measured}
    if earlier:
        notes.append(
            f"{plural(len(earlier), 'row')} of earlier sessions: the limit of each row comes from the reference "
            "measurements of the session that measured the row"
        )
    order = {key: index for index, key in enumerate(key for group in groups for key in group.row_keys())}
    ordered = sorted(rows.values(), key=lambda row: order.get(row.key, len(order)))
    return Measured(ordered, references, this_machine, earlier, notes, path, interruption)


def _end(measured: Measured) -> None:
    """End the command with the exit code of the run. Call this function after the answer is written."""
    if isinstance(measured.interruption, KeyboardInterrupt):
        next_step = "no file has these rows, because --output is missing"
        if measured.path is not None:
            next_step = f"`--resume {measured.path}` continues the run"
        say(f"interrupted: {len(measured.rows)} rows were measured; {next_step}")
        raise typer.Exit(130)
    if measured.interruption is not None:
        raise measured.interruption
    fail_where_wrong(measured.rows)


def _result_file(output: Path | None, resume: Path | None) -> Path | None:
    """Return the path of the result file, or None if the run writes no result file.

    Raises LLMBenchError if both options are given.
    """
    if output is not None and resume is not None:
        raise LLMBenchError(
            "--output and --resume cannot be used together",
            hint="--output starts a new result file, --resume continues an existing result file",
        )
    return output or resume


def _check_files(output: Path | None, resume: Path | None, plot: Path | None) -> None:
    """Raise LLMBenchError if a file cannot be written or has results, or if the file of --resume does not exist."""
    from llmbench.report.plots import PICTURES, check_plot

    if resume is not None and not os.path.isfile(resume):
        raise LLMBenchError(f"--resume {resume}: no such file", hint="--output starts a new result file")
    check_file("--output", output)
    check_file("--plot", plot, PICTURES)
    if plot is not None:
        check_plot(plot)


@contextmanager
def _progress(count: int) -> Iterator[Callable[[str], None]]:
    """Show a progress bar on stderr if stderr is a terminal.

    Yield a function that advances the bar by one step and shows its argument, the name of the next step.
    """
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=count + 1)

        def advance(text: str) -> None:
            bar.update(task, description=text, advance=1)

        yield advance
