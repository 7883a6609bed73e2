"""`llmbench train`: train a model on a text, keep checkpoints and metrics, and go on with a run that has stopped."""

from __future__ import annotations

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import msgspec
import typer
from msgspec import structs

from llmbench.cli.help import OUTPUT
from llmbench.cli.learning import Data, progress, text_of_option
from llmbench.cli.measured import Device, join_ranks, need_torch
from llmbench.cli.messages import say
from llmbench.cli.options import (
    MODEL_HELP,
    Set,
    answer,
    load,
    number_from_zero,
    positive_integer,
    prints_tables,
    token_count,
)
from llmbench.cli.train_document import document
from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.printable import printable
from llmbench.report.render import Format

if TYPE_CHECKING:
    from llmbench.learn.settings import Settings
    from llmbench.learn.texts import Text
    from llmbench.spec.model import ModelSpec

OTHERS = (
    "accumulate",
    "balance",
    "beta1",
    "beta2",
    "clip",
    "compile",
    "dropout",
    "lr_end",
    "sharding",
    "validate_every",
    "validation_batches",
    "weight_decay",
)
"""The settings that only --setting sets."""
Model = Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Steps = Annotated[
    int | None,
    typer.Option(
        "--steps",
        metavar="N",
        help="Steps of the whole schedule. Default: 2000.",
        parser=positive_integer,
        show_default=False,
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch", metavar="N", help="Sequences per step. Default: 12.", parser=positive_integer, show_default=False
    ),
]
Seq = Annotated[
    int | None,
    typer.Option(
        "--seq",
        metavar="TOKENS",
        help="Tokens per sequence. Default: the context length of the model, but at most 256.",
        parser=token_count,
        show_default=False,
    ),
]
Lr = Annotated[
    float | None,
    typer.Option("--lr", metavar="RATE", help="Highest learning rate. Default: 0.001.", show_default=False),
]
Warmup = Annotated[
    int | None,
    typer.Option(
        "--warmup",
        metavar="N",
        parser=number_from_zero,
        help="Steps in which the rate rises to --lr. Default: 100, but at most a tenth of --steps.",
        show_default=False,
    ),
]
Curve = Annotated[
    Literal["cosine", "constant", "trapezoid"] | None,
    typer.Option("--schedule", help="Learning rate after the warm-up. Default: cosine.", show_default=False),
]
Optimizer = Annotated[
    Literal["adamw", "sgd"] | None, typer.Option("--optimizer", help="Default: adamw.", show_default=False)
]
Precision = Annotated[
    Literal["fp32", "bf16"] | None,
    typer.Option(
        "--dtype",
        help="Number format of the products; the weights are in fp32. Default: bf16 on a GPU, fp32 on a CPU.",
        show_default=False,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        parser=number_from_zero,
        help="Decides the first weights and the batches. Default: 0.",
        show_default=False,
    ),
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        "--setting",
        metavar="KEY=VALUE",
        help=f"Another setting: {', '.join(OTHERS)}. Can be repeated.",
        show_default=False,
    ),
]
StopAt = Annotated[
    int | None,
    typer.Option(
        "--stop-at",
        metavar="STEP",
        help="Stop after this step. The schedule is still that of --steps.",
        parser=positive_integer,
        show_default=False,
    ),
]
Resume = Annotated[
    Path | None,
    typer.Option(
        "--resume",
        metavar="FOLDER",
        help="Go on with the run in this folder, with its settings, as if it had never stopped.",
        show_default=False,
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FOLDER",
        help="New folder for checkpoints and metrics.jsonl. Default: nothing is kept.",
        show_default=False,
    ),
]
TensorBoard = Annotated[
    bool, typer.Option("--tensorboard", help="Also write event files for TensorBoard into the folder of the run.")
]
As = Annotated[Format, typer.Option("--format", "-f", help="Format of the answer.", rich_help_panel=OUTPUT)]
LONGEST = 256
"""The largest default of --seq, in tokens."""


@prints_tables
def command(
    model: Model = None,
    data: Data = None,
    steps: Steps = None,
    batch: Batch = None,
    seq: Seq = None,
    lr: Lr = None,
    warmup: Warmup = None,
    schedule: Curve = None,
    optimizer: Optimizer = None,
    dtype: Precision = None,
    device: Device = "auto",
    seed: Seed = None,
    setting: Setting = None,
    set: Set = None,
    stop_at: StopAt = None,
    resume: Resume = None,
    folder: Folder = None,
    tensorboard: TensorBoard = False,
    format: As = "table",
) -> None:
    """Train a model on a text, and show how well it predicts a part of the text that it has not read.

    The first weights are random, also of a model with weights in files. A token is one byte, so the model gets a
    vocabulary of 256. The first 90% of the text are for training, the last 10% for validation. The defaults are
    nanoGPT's settings for a computer without a GPU. Under torchrun, each process trains on an equal part of every
    batch.

    With -o, the folder gets metrics.jsonl with the figures of each step, and a checkpoint after each validation. A run
    that was stopped or killed goes on with --resume. The exit code is 1 if the loss becomes NaN.

    Examples:

      llmbench train nanogpt-cpu -o run

      llmbench train nanogpt-cpu --steps 200 --seed 1 --stop-at 100 -o run2

      llmbench train --resume run2

      llmbench train smollm2-135m --set num_hidden_layers=2 --data book.txt --seq 64 --steps 50
    """
    chosen = {
        "steps": steps, "batch": batch, "seq_len": seq, "lr": lr, "warmup": warmup, "schedule": schedule,
        "optimizer": optimizer, "precision": dtype, "seed": seed,
    }  # fmt: skip
    compiled = setting == ["compile=true"]
    if (model is None) == (resume is None):
        raise LLMBenchError("give either a MODEL or --resume FOLDER", hint="for example `llmbench train nanogpt-cpu`")
    if resume is not None:
        _refuse_with_resume(
            {**chosen, "data": data, "setting": None if compiled else setting, "set": set, "output": folder}
        )
    if tensorboard and folder is None and resume is None:
        raise LLMBenchError("--tensorboard needs a folder for the event files", hint="add -o FOLDER")
    plan = None if model is None else _plan(load(model, set), chosen, setting, stop_at, folder, data)
    if resume is not None:
        _refuse_resume(resume, stop_at, compiled)
    if tensorboard and find_spec("tensorboard") is None:
        raise CannotRunError(
            "--tensorboard needs the package tensorboard, which is not installed", hint="run `pip install tensorboard`"
        )
    need_torch("train")
    from llmbench.learn.data import corpus_of_text
    from llmbench.learn.session import new_session, resumed_session
    from llmbench.measure.environment import environment
    from llmbench.model.devices import device_of

    ranks, where = join_ranks("any", device_of(device), "train")
    vocabulary = ""
    if resume is not None:
        session = resumed_session(resume, device=where, ranks=ranks, compile=compiled)
    else:
        assert plan is not None
        spec, settings = plan.spec, plan.settings
        if dtype is None and where.type == "cuda":
            settings = structs.replace(settings, precision="bf16")
        text = corpus_of_text(plan.text)
        if spec.vocab_size != text.vocab_size:
            vocabulary = (
                f"vocabulary changed from {spec.vocab_size:,} to {text.vocab_size:,} "
                f"{'bytes' if text.floor is None else 'symbols'}"
            )
        session = new_session(
            spec,
            text,
            settings,
            device=where,
            folder=folder,
            command=printable(shlex.join(["llmbench", *sys.argv[1:]])),
            ranks=ranks,
        )
    last = stop_at or session.state.settings.steps
    with progress(last, start=session.state.step, shown=ranks.first) as advance:
        try:
            trained = session.run(
                stop_at=stop_at, tensorboard=tensorboard, on_step=lambda row: advance(row.step, f"loss {row.loss:.3f}")
            )
        except KeyboardInterrupt:
            if ranks.first and session.folder is not None:
                say(f"stopped; `llmbench train --resume {session.folder}` goes on after step {session.state.step:,}")
            raise
        except LLMBenchError:
            for note in session.notes:
                say(f"note: {note}")
            raise
    if not ranks.first:
        return
    inputs = {"model": model, "resume": None if resume is None else str(resume), "stop_at": stop_at, "set": set or []}
    answer(document(session, trained, inputs, vocabulary, environment(where)), format, None)


def _refuse_with_resume(options: dict[str, Any]) -> None:
    names = {"seq_len": "seq", "precision": "dtype"}
    for name, value in options.items():
        if value is not None:
            raise LLMBenchError(
                f"--{names.get(name, name)} cannot be used with --resume: a resumed run keeps its settings",
                hint="only --stop-at, --device, --tensorboard and --setting compile=true can be given with --resume",
            )


class _Plan(NamedTuple):
    """What is known of a new run before torch is imported."""

    spec: ModelSpec
    settings: Settings
    text: Text


def _plan(
    spec: ModelSpec,
    chosen: dict[str, Any],
    others: list[str] | None,
    stop_at: int | None,
    folder: Path | None,
    data: str | None,
) -> _Plan:
    """Return the plan of a run. Refuse here what cannot work: an import of torch takes seconds."""
    from llmbench.learn.refusals import refuse_run, refuse_stop

    settings = _settings(chosen, others, spec.max_position_embeddings)
    refuse_stop(stop_at, 0, settings.steps)
    refuse_run(spec, settings, folder)
    text = text_of_option(data)
    text.refuse_short(settings.seq_len)
    return _Plan(spec, settings, text)


def _refuse_resume(folder: Path, stop_at: int | None, compiled: bool) -> None:
    from llmbench.learn.refusals import refuse_stop
    from llmbench.learn.state import resumable

    _, _, state = resumable(folder, compile=compiled)
    refuse_stop(stop_at, state.step, state.settings.steps)


def _settings(chosen: dict[str, Any], others: list[str] | None, context: int | None) -> Settings:
    """Return the settings: the values of the options, and the defaults that depend on the model. `context`: its length
    of context."""
    from llmbench.learn.settings import Settings, Sharding
    from llmbench.spec.override import parse_assignments

    given = {name: value for name, value in chosen.items() if value is not None}
    defaults = Settings()
    steps = given.get("steps", defaults.steps)
    values: dict[str, Any] = {
        "seq_len": min(context or LONGEST, LONGEST),
        "warmup": min(defaults.warmup, steps // 10),
        "validate_every": min(defaults.validate_every, -(-steps // 8)),
        **given,
    }
    kinds = {field.name: field.type for field in structs.fields(Settings)}
    words = {int: "a whole number", float: "a number", bool: "true or false", Sharding: "ddp or fsdp"}
    for name, value in parse_assignments(others or [], "--setting", "dropout=0.1").items():
        if name not in OTHERS:
            raise LLMBenchError(f"--setting {name}: unknown setting", hint=f"choose from {', '.join(OTHERS)}")
        try:
            values[name] = msgspec.convert(value, kinds[name])
        except msgspec.ValidationError:
            raise LLMBenchError(f"--setting {name}: {value!r} is not {words[kinds[name]]}") from None
    return Settings(**values)
