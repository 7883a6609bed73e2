"""Code that the commands which train models share: options, the text, the progress bar, and the headline."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from llmbench.cli.measured import check_file
from llmbench.cli.messages import say
from llmbench.cli.options import positive_integer
from llmbench.errors import LLMBenchError
from llmbench.report.describe import headline
from llmbench.report.units import duration, plural
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.learn.data import Corpus
    from llmbench.learn.settings import Settings
    from llmbench.learn.texts import Text


def learning_rate(text: str | float) -> float:
    """Parse the value of an option as a learning rate. Raises BadParameter unless it is above 0 and finite."""
    try:
        rate = float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number, such as 1e-3") from None
    if not 0 < rate < float("inf"):
        raise typer.BadParameter(f"{text} is not above 0 and finite")
    return rate


class Rates(tuple[float, ...]):
    """One or several learning rates, in rising order."""


def learning_rates(text: str | Rates) -> Rates:
    """Parse learning rates that are separated by commas."""
    return text if isinstance(text, Rates) else Rates(sorted({learning_rate(part) for part in text.split(",")}))


Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="TEXT",
        help="Text to train on: shakespeare, stdlib (the sources of Python's standard library), markov:V,order,seed (a "
        "synthetic text with V symbols and a known entropy), or a file. Default: shakespeare.",
        show_default=False,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE", help="Draw the losses into a .png, .svg or .pdf file.", show_default=False),
]
Lr = Annotated[float, typer.Option("--lr", metavar="RATE", help="Highest learning rate.", parser=learning_rate)]
Lrs = Annotated[
    Rates, typer.Option("--lr", metavar="LIST", help="Learning rates, separated by commas.", parser=learning_rates)
]
Seeds = Annotated[
    int,
    typer.Option(
        "--seeds", metavar="N", help="Trainings of each variant, with the seeds 0 to N - 1.", parser=positive_integer
    ),
]
Steps = Annotated[
    int, typer.Option("--steps", metavar="N", help="Training steps of each model.", parser=positive_integer)
]
Batch = Annotated[
    int, typer.Option("--batch", metavar="N", help="Sequences per training step.", parser=positive_integer)
]
Seq = Annotated[int, typer.Option("--seq", metavar="TOKENS", help="Length of the sequences.", parser=positive_integer)]
MOST_TRAININGS = 1000
"""The largest number of models that one command trains."""
MOST_TOKENS = 2**20
"""The largest number of tokens of a training step of an experiment. Experiments run on a CPU."""


def text_of_option(data: str | None) -> Text:
    """Return the text of --data. If the default text is missing, the sources of the standard library take its place.

    A note on stderr says so. Under torchrun, which gives each process a number in RANK, only the first process says it.
    """
    from llmbench.learn.texts import default_text, text_of

    if data is not None:
        return text_of(data)
    text, reason = default_text()
    if reason is not None and os.environ.get("RANK", "0") == "0":
        say(f"note: {reason}")
    return text


@contextmanager
def progress(total: int, *, start: int = 0, shown: bool = True) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar on stderr until the block ends. Do nothing if stderr is not a terminal.

    Yields a function that is called with the number of steps that are done, and a text about the last one.
    """
    if not shown or not sys.stderr.isatty():
        yield lambda done, text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("training", total=total, completed=start)
        yield lambda done, text: bar.update(task, completed=done, description=text)


LINES = 10
"""The largest number of lines about the progress of trainings, if stderr is not a terminal."""
LEAST_S = 10.0
"""The least time between two of these lines, in seconds."""


@contextmanager
def progress_of_trainings(
    count: int, steps: int, *, now: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, str], None]]:
    """Show on stderr how many of `count` trainings with `steps` steps each are done: a progress bar on a terminal, a
    few lines elsewhere.

    Yields a function that is called after each step, with its number in its training, from 1, and a text about it.
    `now`: the clock, in seconds.
    """
    lines = not sys.stderr.isatty()
    if lines:
        say(f"{plural(count, 'training')} of {plural(steps, 'step')} each")
    done, shown, start, said = -1, 0, 0.0, 0.0
    with progress(count * steps) as show:

        def advance(step: int, text: str) -> None:
            nonlocal done, shown, start, said
            if done < 0:
                start = said = now()
            done += step == 1  # a training that stops early has no last step
            show(done * steps + step, text)
            if lines and step == 1 and done * LINES // count > shown and now() - said >= LEAST_S:
                shown, said = done * LINES // count, now()
                left = (said - start) / done * (count - done)
                say(f"{done} of {count:,} trainings, {duration(said - start)}, about {duration(left)} left")

        yield advance


def about_training(spec: ModelSpec, text: Corpus, settings: Settings, *, of_all: bool = True) -> str:
    """Return lines about the model, the text and the settings, for the headline of an answer.

    `of_all`: whether the learning rate, the warm-up and the seed are those of all trainings.
    """
    chosen = settings
    rate = f"learning rate {chosen.lr:g}, {chosen.schedule}, warm-up {chosen.warmup}" if of_all else chosen.schedule
    return (
        f"{headline(spec)}\n"
        f"{text.name}: {len(text.train):,} bytes for training, {len(text.validation):,} for validation\n"
        f"{chosen.optimizer} · {chosen.steps:,} steps · batch {chosen.batch} × {chosen.seq_len} · {rate} · "
        f"{chosen.precision}{f' · seed {chosen.seed}' if of_all else ''}"
    )


def refuse_large_steps(batch: int, seq_len: int) -> None:
    """Raise LLMBenchError if a training step has more than MOST_TOKENS tokens."""
    if batch * seq_len > MOST_TOKENS:
        raise LLMBenchError(
            f"a step of {batch:,} × {seq_len:,} tokens has more than {MOST_TOKENS:,} tokens",
            hint="use a smaller --batch or --seq",
        )


def refuse_many_trainings(count: int) -> None:
    """Raise LLMBenchError if a command would train more than MOST_TRAININGS models."""
    if count > MOST_TRAININGS:
        raise LLMBenchError(f"{count:,} trainings are more than {MOST_TRAININGS:,}")


def check_files(output: Path | None, plot: Path | None) -> None:
    """Raise LLMBenchError if a file of --output or --plot cannot be written. A command calls this before it trains."""
    from llmbench.report.plots import PICTURES, check_plot

    check_file("--output", output)
    check_file("--plot", plot, PICTURES)
    if plot is not None:
        check_plot(plot)
