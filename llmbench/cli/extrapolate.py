"""`llmbench extrapolate`: compare position encodings on sequences that are longer than those of the training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import typer

from llmbench.cli.learning import (
    Batch,
    Data,
    Lr,
    Plot,
    Steps,
    about_training,
    check_files,
    progress_of_trainings,
    refuse_large_steps,
    text_of_option,
)
from llmbench.cli.measured import need_torch, place
from llmbench.cli.options import (
    As,
    Counts,
    Output,
    Seed,
    Set,
    answer_and_show,
    load,
    positive_integer,
    prints_tables,
    token_counts,
)
from llmbench.learn.experiments.positions import METHODS, Method, base_of, lengths_of, methods_of
from llmbench.learn.experiments.statistics import has_learned
from llmbench.learn.refusals import refuse_other_models
from llmbench.report.document import Block, Document, Table, table
from llmbench.report.fields import Field, records
from llmbench.report.plots import Panel, Series
from llmbench.report.units import plural, signed, word_list
from llmbench.spec.override import override

if TYPE_CHECKING:
    from llmbench.learn.experiments.lengths import Score
    from llmbench.measure.environment import Environment

Methods = Annotated[
    str | None,
    typer.Option(
        "--methods",
        metavar="LIST",
        help="Methods, separated by commas: learned, sinusoidal, rope, interpolation, ntk, yarn, alibi, none. Default: "
        "all.",
        show_default=False,
    ),
]
Lengths = Annotated[
    Counts,
    typer.Option(
        "--lengths",
        metavar="TOKENS",
        help="Lengths of the sequences that the trained models read.",
        parser=token_counts,
    ),
]
Seq = Annotated[
    int, typer.Option("--seq", metavar="TOKENS", help="Length of the training sequences.", parser=positive_integer)
]


@prints_tables
def command(
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="Model whose positions are replaced.")
    ] = "nanogpt-cpu",
    methods: Methods = None,
    lengths: Lengths = Counts((96, 128, 256, 512)),
    seq: Seq = 64,
    data: Data = None,
    steps: Steps = 600,
    batch: Batch = 24,
    lr: Lr = 1e-3,
    seed: Seed = 0,
    set: Set = None,
    plot: Plot = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Train a small model once for each position encoding, and let it read sequences longer than in training.

    The same tokens are scored at every length: the last 32 tokens of 64 sequences. So the losses of a method differ by
    the context alone. interpolation, ntk and yarn use the weights that were trained with rope, without more training.

    The presets train five models on one CPU core, in about 10 minutes.

    Examples:

      llmbench extrapolate

      llmbench extrapolate --methods rope,ntk,alibi --lengths 128,256

      llmbench extrapolate nanogpt-cpu --steps 2000 --seed 1 -o lengths.json
    """
    spec = load(model, set)
    refuse_large_steps(batch, seq)
    chosen = list(METHODS) if methods is None else methods_of([name.strip() for name in methods.split(",")])
    refuse_other_models(spec)
    base_of(spec, chosen, seq)
    check_files(output, plot)
    content = text_of_option(data)
    content.refuse_short(lengths_of(lengths, seq)[-1])
    need_torch("extrapolate")
    from llmbench.learn.data import corpus_of_text, pair_loss
    from llmbench.learn.experiments.lengths import extrapolate
    from llmbench.learn.settings import Settings
    from llmbench.measure.environment import environment
    from llmbench.model.devices import device_of

    text = corpus_of_text(content)
    settings = Settings(steps=steps, batch=batch, seq_len=seq, lr=lr, warmup=steps // 10, seed=seed)
    base = override(spec, {"vocab_size": text.vocab_size})
    trainings = len({str(method.trained(seq)) for method in chosen})
    with progress_of_trainings(trainings, steps) as advance:
        scores = extrapolate(
            base,
            text,
            settings,
            chosen,
            lengths,
            on_step=lambda name, row: advance(row.step, f"{name}: loss {row.loss:.3f}"),
        )
    inputs = {
        "model": model,
        "methods": [method.name for method in chosen],
        "lengths": list(lengths),
        "data": text.name,
        "settings": settings,
        "set": set or [],
    }
    found = environment(device_of("cpu"))
    about = about_training(base, text, settings)
    if plot is not None:
        from llmbench.report.plots import save

        save([panel(scores)], plot, title=f"Trained on {seq} tokens, read with more", caption=about)
    guesses = Guesses(text.unigram, pair_loss(text.train, text.validation, text.vocab_size))
    answer_and_show(document(scores, chosen, seq, inputs, about, guesses, found), format, output)


class Guesses(NamedTuple):
    """The losses of two tables without a neural network, in nats.

    - `unigram`: it knows how often each token occurs.
    - `pairs`: it also knows how often each token follows another one, so it reads one token of the context.
    """

    unigram: float
    pairs: float


class Row(NamedTuple):
    """One method at one length, with plain values. Losses are in nats."""

    method: str
    about: str
    length: int
    loss: float | None
    change: float | None
    low: float | None
    high: float | None
    p: float | None
    verdict: str
    reason: str


FIELDS: tuple[Field[Row], ...] = (
    Field("method", "method", description="name of the position encoding"),
    Field("about", "about", description="what the method does"),
    Field("length", "length", "count", description="tokens of a sequence"),
    Field("loss", "loss", "number", description="mean loss of the scored tokens in nats; null if the model cannot"),
    Field("change", "change", "number", description="`loss` minus that at the training length; null at this length"),
    Field("low", None, "number", description="lower end of the 95% interval of `change`"),
    Field("high", None, "number", description="upper end of the 95% interval of `change`"),
    Field("p", None, "number", description="two-sided p-value of a true change of 0"),
    Field(
        "verdict",
        "verdict",
        description="trained length, as well (within 0.05 nats), better, worse, within noise, cannot read",
    ),
    Field("reason", None, description="why there is no loss; empty if there is one"),
)


def _row(score: Score, about: str) -> Row:
    change = score.change
    mean, low, high, p = (None,) * 4 if change is None else change
    return Row(score.method, about, score.length, score.loss, mean, low, high, p, score.verdict, score.reason)


def document(
    scores: Sequence[Score],
    methods: Sequence[Method],
    trained: int,
    inputs: dict[str, Any],
    about: str,
    guesses: Guesses,
    found: Environment,
) -> Document:
    """Return the document of all scores. `trained`: the training length. `about`: the model, text and settings."""
    rows = [_row(score, next(m.about for m in methods if m.name == score.method)) for score in scores]
    untrained = [row.method for row in rows if row.length == trained and not has_learned(row.loss, guesses.pairs)]
    block = Block(
        answer=f"{_finding(rows, trained, untrained)} {_floor(rows, trained, guesses)}",
        headline=about,
        table=_losses(rows, trained),
        lines=[
            "losses of the same tokens, in nats",
            f"Δ: the loss minus that at {trained} tokens, ± half of its 95% interval",
            place(found),
        ],
        notes=[_too_short(untrained, trained, guesses)] if untrained else [],
    )
    return Document(
        command="extrapolate",
        inputs=inputs,
        environment=msgspec.structs.asdict(found),
        also=guesses._asdict(),
        rows_key="scores",
        rows=records(FIELDS, rows),
        tables=[table(FIELDS, rows)],
        blocks=[block],
    )


def panel(scores: Sequence[Score]) -> Panel:
    """Return a plot of the losses of the same tokens against the length of the sequence."""
    curves = []
    for method in dict.fromkeys(score.method for score in scores):
        losses = [(score.length, score.loss) for score in scores if score.method == method]
        points = [(float(length), loss) for length, loss in losses if loss is not None]
        curves.append(Series(method, points, "cannot read more" if len(points) < len(losses) else ""))
    return Panel("loss (nats)", "the same tokens at each length", "tokens of the sequence", "nats", curves)


def _losses(rows: Sequence[Row], trained: int) -> Table:
    """Return the table for people: a row for each method, and a column for each length."""
    lengths = sorted({row.length for row in rows})
    by_place = {(row.method, row.length): row for row in rows}
    longest = lengths[-1]
    columns: list[Field[Any]] = [
        Field("method", "method"),
        *(Field(str(length), f"{length}", "text") for length in lengths),
        Field("change", f"Δ at {longest}", "text"),
        Field("verdict", f"at {longest} tokens", "text"),
    ]
    cells = []
    for method in dict.fromkeys(row.method for row in rows):
        last = by_place[method, longest]
        losses = [by_place[method, length].loss for length in lengths]
        change = None
        if last.change is not None and last.high is not None:
            change = signed(f"{last.change:+.2f} ± {last.high - last.change:.2f}")
        cells.append([method, *(None if loss is None else f"{loss:.3f}" for loss in losses), change, last.verdict])
    return Table(columns=columns, rows=cells)


def _finding(rows: Sequence[Row], trained: int, untrained: Sequence[str]) -> str:
    """Return the sentences that answer the question: which methods keep their loss at the longest length?

    `untrained`: methods whose models have not learned enough to be judged.
    """
    longest = max(row.length for row in rows)
    last = [row for row in rows if row.length == longest]
    judged = [row for row in last if row.method not in untrained]
    kept = [row for row in judged if row.verdict in ("as well", "better")]
    worse = sorted((row for row in judged if row.verdict == "worse"), key=lambda row: row.change or 0.0)
    refused = [row.method for row in last if row.loss is None]
    sentences = []
    if not judged:
        sentences.append("Nothing is decided: no model has learned enough to judge how it reads longer sequences.")
    elif kept:
        sentences.append(
            f"Trained on {plural(trained, 'token')}, {word_list([row.method for row in kept])} "
            f"{'reads' if len(kept) == 1 else 'read'} {longest} tokens as well or better."
        )
    elif worse:
        sentences.append(
            f"No method that was trained on {plural(trained, 'token')} keeps its loss with {longest} tokens."
        )
    undecided = [row.method for row in judged if row.verdict == "within noise"]
    if undecided:
        sentences.append(f"Not decided, because the change is within noise: {', '.join(undecided)}.")
    if worse:
        losses = ", ".join(f"{row.method} {row.change:.2f}" for row in worse)
        sentences.append(f"The loss rises at {longest} tokens by, in nats: {losses}.")
    if refused:
        sentences.append(f"{word_list(refused)} cannot read more than {trained} tokens.")
    return " ".join(sentences)


def _floor(rows: Sequence[Row], trained: int, guesses: Guesses) -> str:
    """Return the losses of the models at the training length, beside those of guessing."""
    losses = [row.loss for row in rows if row.length == trained and row.loss is not None]
    shown = f"{min(losses):.3f} to {max(losses):.3f}" if len(set(losses)) > 1 else f"{min(losses):.3f}"
    return (
        f"At {trained} tokens, the loss is {shown} nats; guessing by frequency gets {guesses.unigram:.3f}, and a table "
        f"of token pairs {guesses.pairs:.3f}."
    )


def _too_short(untrained: Sequence[str], trained: int, guesses: Guesses) -> str:
    """Return a note about methods whose models have learned no more than pairs of tokens."""
    return (
        f"{word_list(untrained)}: at {trained} tokens, the loss is not clearly below the {guesses.pairs:.3f} nats of a "
        "table of token pairs, which reads one token. Such a model shows nothing about longer contexts. More --steps, "
        "or a text with longer dependences, may help"
    )
