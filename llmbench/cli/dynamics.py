"""`llmbench dynamics`: which placements of norms train, at which learning rates, and what happens inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import msgspec
import typer

from llmbench.cli.learning import (
    Batch,
    Data,
    Lrs,
    Plot,
    Rates,
    Seeds,
    Seq,
    Steps,
    about_training,
    check_files,
    progress_of_trainings,
    refuse_large_steps,
    refuse_many_trainings,
    text_of_option,
)
from llmbench.cli.measured import need_torch, place
from llmbench.cli.options import As, Counts, Output, Set, answer_and_show, load, prints_tables, sequence_counts
from llmbench.learn.experiments.placements import NARROW, SETTINGS, arms_of, base_of
from llmbench.learn.refusals import refuse_run
from llmbench.report.document import Block, Document, Table, table
from llmbench.report.fields import Field, records
from llmbench.report.plots import Panel, Series
from llmbench.report.units import plural
from llmbench.spec.override import override

if TYPE_CHECKING:
    from llmbench.learn.experiments.norms import Outcome
    from llmbench.measure.environment import Environment

MODEL = "nanogpt-cpu"

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]",
        help="Model whose norms and depth are changed. Default: nanogpt-cpu with width 64, 4 heads and an untied head.",
        show_default=False,
    ),
]
Arms = Annotated[
    str,
    typer.Option(
        "--arms",
        metavar="LIST",
        help="Variants, separated by commas: pre, post, post-warmup, deepnorm, sandwich, qk-norm, sigma-reparam, "
        "pre-gpt2, post-gpt2.",
    ),
]
Layers = Annotated[Counts, typer.Option("--layers", metavar="N", help="Numbers of layers.", parser=sequence_counts)]


@prints_tables
def command(
    model: Model = None,
    arms: Arms = "pre,post,post-warmup,deepnorm",
    layers: Layers = Counts((12,)),
    lr: Lrs = Rates((3e-4, 1e-3, 3e-3)),
    seeds: Seeds = 1,
    data: Data = None,
    steps: Steps = 400,
    batch: Batch = 16,
    seq: Seq = 64,
    set: Set = None,
    plot: Plot = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Train deep models with norms at different places, and show which learning rates they survive.

    A variant fails if its loss stays at that of guessing each token by its frequency. The optimizer is AdamW with a
    constant rate, without weight decay and clipping. The first weights are those of the original Transformer, except in
    deepnorm, pre-gpt2 and post-gpt2.

    During each training, probes look inside the model: gradients, attention, and how different the tokens are. JSON has
    all of their figures.

    The presets train 12 models on one CPU core, in about 15 minutes.

    Examples:

      llmbench dynamics

      llmbench dynamics --arms pre,post --layers 6,12,24 --lr 1e-3 --seeds 3

      llmbench dynamics --arms post,post-gpt2,deepnorm --lr 1e-3 -o norms.json
    """
    spec = load(model or MODEL, set)
    refuse_large_steps(batch, seq)
    rates = list(lr)
    names = [name.strip() for name in arms.split(",")]
    count = len(names) * len(layers) * len(rates) * seeds
    refuse_many_trainings(count)
    settings = msgspec.structs.replace(
        SETTINGS, steps=steps, batch=batch, seq_len=seq, validate_every=max(1, steps // 4), lr=rates[0]
    )
    base = override(spec, {**({} if model else NARROW), "max_position_embeddings": seq})
    for depth in layers:  # refuse a variant before torch is imported
        for arm in arms_of(names, depth):
            refuse_run(arm.spec(base_of(base, depth)), settings, None)
    check_files(output, plot)
    content = text_of_option(data)
    content.refuse_short(seq)
    need_torch("dynamics")
    from llmbench.learn.data import corpus_of_text
    from llmbench.learn.experiments.norms import dynamics
    from llmbench.measure.environment import environment
    from llmbench.model.devices import device_of

    text = corpus_of_text(content)
    base = override(base, {"vocab_size": text.vocab_size})
    with progress_of_trainings(count, steps) as advance:
        outcomes = dynamics(
            base,
            text,
            settings,
            names,
            layers,
            rates,
            range(seeds),
            on_step=lambda name, row: advance(row.step, f"{name}: loss {row.loss:.3f}"),
        )
    inputs = {
        "model": model,
        "arms": names,
        "layers": list(layers),
        "lr": rates,
        "seeds": seeds,
        "data": text.name,
        "settings": settings,
        "set": set or [],
    }
    about = about_training(base_of(base, layers[0]), text, settings, of_all=False)
    if plot is not None:
        from llmbench.report.plots import save

        save(panels(outcomes, text.unigram), plot, title="Which learning rates does a model survive?", caption=about)
    answer_and_show(document(outcomes, text.unigram, inputs, about, environment(device_of("cpu"))), format, output)


class Row(NamedTuple):
    """One training, with plain values. Losses are in nats."""

    arm: str
    layers: int
    lr: float
    seed: int
    loss: float | None
    failed: bool
    losses: list[tuple[int, float]]
    warnings: list[dict[str, Any]]
    diverged: str
    seconds: float
    probes: dict[int, Any]


FIELDS: tuple[Field[Row], ...] = (
    Field("arm", "variant", description="name of the variant"),
    Field("layers", "layers", "count", description="number of layers"),
    Field("lr", "learning rate", "number", description="learning rate after the warm-up"),
    Field("seed", "seed", "count", description="seed of the first weights and the batches"),
    Field("loss", "loss", "number", description="last validation loss in nats; null if the training stopped"),
    Field("failed", "failed", description="whether the model learned hardly more than the frequencies of the tokens"),
    Field("losses", None, description="pairs of a step and the validation loss after it"),
    Field("warnings", None, description="`name`, first `step` and `text` of each rule that fired"),
    Field("diverged", None, description="why the training stopped before its end; empty if it did not"),
    Field("seconds", None, "number", description="time of all steps, without validations"),
    Field("probes", None, description="the figures of the probes by step: one number per layer, or per head and layer"),
)


def _row(outcome: Outcome, unigram: float) -> Row:
    from llmbench.learn.experiments.norms import failed

    return Row(
        outcome.arm,
        outcome.layers,
        outcome.lr,
        outcome.seed,
        outcome.loss,
        failed(outcome, unigram),
        outcome.losses,
        [warning._asdict() for warning in outcome.warnings],
        outcome.diverged,
        outcome.seconds,
        outcome.observations,
    )


def document(
    outcomes: Sequence[Outcome], unigram: float, inputs: dict[str, Any], about: str, found: Environment
) -> Document:
    """Return the document of all trainings. `unigram`: the loss of guessing by frequency, in nats. `about`: the model,
    the text and the settings."""
    rows = [_row(outcome, unigram) for outcome in outcomes]
    losses = Block(
        answer=" ".join(_findings(rows)),
        headline=about,
        table=_losses(rows),
        lines=[
            f"validation loss in nats at each learning rate (lr); guessing by frequency has {unigram:.3f}",
            place(found),
        ],
        notes=list(_too_short(rows, unigram)),
    )
    inside = Block(
        headline="inside the models, at the last observed step, in the mean over seeds",
        table=table(INSIDE, list(_inside(rows))),
        lines=[
            "cosine: mean cosine of two tokens of a sequence, after the last layer; 1: the tokens are equal",
            "rank: effective rank of the tokens of a sequence, after the last layer",
            "gradient: norm of the gradient of the first layer, as a multiple of that of the last layer",
            "entropy: of the sharpest head, 1 if it gives all keys equal weight",
        ],
        notes=list(_fired(rows)),
    )
    return Document(
        command="dynamics",
        inputs=inputs,
        environment=msgspec.structs.asdict(found),
        also={"unigram": unigram},
        rows_key="trainings",
        rows=records(FIELDS, rows),
        tables=[table(FIELDS, rows)],
        blocks=[losses, inside],
    )


def panels(outcomes: Sequence[Outcome], unigram: float) -> list[Panel]:
    """Return a plot of the loss against the learning rate for each depth.

    A loss is the mean over the seeds that did not stop, as in the table. A cross marks a rate at which a seed failed.
    """
    rates = sorted({outcome.lr for outcome in outcomes})
    rows = [_row(outcome, unigram) for outcome in outcomes]
    result = []
    for layers in dict.fromkeys(row.layers for row in rows):
        curves = []
        for (depth, arm), by_rate in _groups(rows).items():
            losses = {rate: [row.loss for row in found if row.loss is not None] for rate, found in by_rate.items()}
            if depth == layers:
                stopped = [f"{rate:g}" for rate in rates if not losses[rate]]
                missing = f"not finite at {', '.join(stopped)}" if stopped else ""
                failed = frozenset(rate for rate in rates if any(row.failed for row in by_rate[rate]))
                points = [(rate, fmean(losses[rate])) for rate in rates if losses[rate]]
                curves.append(Series(arm, points, missing, failed))
        curves.append(Series("guessing by frequency", [(rate, unigram) for rate in rates]))
        cross = "a seed failed"
        result.append(Panel("validation loss (nats)", plural(layers, "layer"), "learning rate", "nats", curves, cross))
    return result


def _groups(rows: Sequence[Row]) -> dict[tuple[int, str], dict[float, list[Row]]]:
    """Return the rows of all seeds by (layers, variant) and learning rate."""
    groups: dict[tuple[int, str], dict[float, list[Row]]] = {}
    for row in rows:
        groups.setdefault((row.layers, row.arm), {}).setdefault(row.lr, []).append(row)
    return groups


def _losses(rows: Sequence[Row]) -> Table:
    """Return the table of losses: a row for each variant and depth, a column for each learning rate."""
    rates = sorted({row.lr for row in rows})
    columns: list[Field[Any]] = [
        Field("layers", "layers", "count"),
        Field("arm", "variant"),
        *(Field(f"lr {rate:g}", f"lr {rate:g}") for rate in rates),
    ]
    cells = [
        [layers, arm, *(_cell(by_rate[rate]) for rate in rates)] for (layers, arm), by_rate in _groups(rows).items()
    ]
    return Table(columns=columns, rows=cells)


def _cell(rows: Sequence[Row]) -> str:
    """Return the mean loss of all seeds, and how many of them failed."""
    losses = [row.loss for row in rows if row.loss is not None]
    failures = sum(row.failed for row in rows)
    mean = f"{fmean(losses):.3f}" if losses else "not finite"
    if not failures:
        return mean
    return f"{mean} fails" if failures == len(rows) else f"{mean} ({failures} of {len(rows)} fail)"


def _findings(rows: Sequence[Row]) -> Iterator[str]:
    """Yield sentences for each depth: which variants train at which rates? If all fail, the trainings do not tell the
    variants apart."""
    for layers in dict.fromkeys(row.layers for row in rows):
        verdicts = []
        if all(row.failed for row in rows if row.layers == layers):
            yield f"With {plural(layers, 'layer')}, nothing is decided: every training fails."
            continue
        for (depth, arm), by_rate in _groups(rows).items():
            if depth == layers:
                failures = {rate: sum(row.failed for row in found) for rate, found in by_rate.items()}
                bad = [
                    f"{rate:g}"
                    if failures[rate] == len(found)
                    else f"{rate:g} ({failures[rate]} of {len(found)} seeds)"
                    for rate, found in by_rate.items()
                    if failures[rate]
                ]
                good = [f"{rate:g}" for rate in by_rate if not failures[rate]]
                if not bad:
                    verdicts.append(f"{arm} trains at {'all rates' if len(good) > 1 else good[0]}")
                elif not good:
                    every = len(bad) > 1 and all(failures[rate] == len(found) for rate, found in by_rate.items())
                    verdicts.append(f"{arm} fails at {'all rates' if every else ', '.join(bad)}")
                else:
                    verdicts.append(f"{arm} trains at {', '.join(good)} and fails at {', '.join(bad)}")
        yield f"With {plural(layers, 'layer')}: {'; '.join(verdicts)}."


def _too_short(rows: Sequence[Row], unigram: float) -> Iterator[str]:
    """Yield a note if no training got below the loss of guessing by frequency. Such losses cannot rank the variants.

    `unigram`: that loss, in nats.
    """
    losses = [row.loss for row in rows if row.loss is not None]
    if losses and all(row.failed for row in rows):
        remedy = (
            "More --steps" if any(row.arm == "pre" for row in rows) else "More --steps, or the variant pre in --arms,"
        )
        yield (
            f"the trainings may be too short to tell anything. Even the lowest loss, {min(losses):.3f} nats, is not "
            f"clearly below the {unigram:.3f} nats of guessing by frequency. {remedy} would show whether the model can "
            "learn"
        )


class Inside(NamedTuple):
    """The figures of the probes at the last observed step, in the mean over seeds."""

    layers: int
    arm: str
    lr: float
    cosine: float
    rank: float
    gradient: float
    entropy: float
    warnings: str


INSIDE: tuple[Field[Inside], ...] = (
    Field("layers", "layers", "count"),
    Field("arm", "variant"),
    Field("lr", "lr", text=lambda row: f"{row.lr:g}"),
    Field("cosine", "cosine", text=lambda row: f"{row.cosine:.3f}"),
    Field("rank", "rank", text=lambda row: f"{row.rank:.1f}"),
    Field("gradient", "gradient", text=lambda row: f"{row.gradient:.2g}"),
    Field("entropy", "entropy", text=lambda row: f"{row.entropy:.2f}"),
    Field("warnings", "warnings"),
)


def _inside(rows: Sequence[Row]) -> Iterator[Inside]:
    for (layers, arm), by_rate in _groups(rows).items():
        for rate, found in by_rate.items():
            last = [row.probes[max(row.probes)] for row in found if row.probes]
            if not last:
                continue
            names = dict.fromkeys(warning["name"] for row in found for warning in row.warnings)
            yield Inside(
                layers,
                arm,
                rate,
                fmean(seen["token_cosine"][-1] for seen in last),
                fmean(seen["token_rank"][-1] for seen in last),
                fmean(seen["gradient_norm"][0] / (seen["gradient_norm"][-1] or 1.0) for seen in last),
                fmean(min(min(heads, default=1.0) for heads in seen["normalised_entropy"]) for seen in last),
                ", ".join(names),
            )


def _fired(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a note for each rule that fired: what it means, and the variants with the first step of each."""
    by_rule: dict[str, dict[str, int]] = {}
    several = len({row.layers for row in rows}) > 1
    for row in rows:
        depth = f" with {row.layers} layers" if several else ""
        for warning in row.warnings:
            steps = by_rule.setdefault(f"{warning['name']}: {warning['text']}", {})
            variant = f"{row.arm}{depth} at {row.lr:g}"
            steps[variant] = min(warning["step"], steps.get(variant, warning["step"]))  # over the seeds
    for rule, steps in by_rule.items():
        yield f"{rule}: {', '.join(f'{variant} from step {step}' for variant, step in steps.items())}"
