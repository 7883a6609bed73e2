"""The answer of `llmbench train`: the validations of a run, as a document."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from llmbench.cli.measured import place
from llmbench.report.describe import headline
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, records
from llmbench.report.units import fixed, percent, plural, si

if TYPE_CHECKING:
    from llmbench.learn.loop import Trained
    from llmbench.learn.session import Session
    from llmbench.measure.environment import Environment


class Row(NamedTuple):
    """A validation, with the loss of the step before it. `loss`: None before the first step. Losses are in nats."""

    step: int
    tokens: int
    loss: float | None
    validation_loss: float
    perplexity: float
    bits_per_byte: float


FIELDS: tuple[Field[Row], ...] = (
    Field("step", "step", "count", description="number of finished steps"),
    Field("tokens", "tokens", "count", description="tokens of all training steps so far", spare=1),
    Field(
        "loss",
        "training loss",
        "number",
        text=lambda row: None if row.loss is None else f"{row.loss:.3f}",
        description="loss of the step's batch in nats; null before the first step",
    ),
    Field(
        "validation_loss",
        "validation loss",
        "number",
        text=lambda row: f"{row.validation_loss:.3f}",
        description="loss on the validation part, in nats per byte",
    ),
    Field(
        "perplexity",
        "perplexity",
        "number",
        text=lambda row: fixed(row.perplexity, 2),
        description="exp(`validation_loss`)",
    ),
    Field(
        "bits_per_byte",
        "bits per byte",
        "number",
        text=lambda row: f"{row.bits_per_byte:.3f}",
        description="`validation_loss` / ln 2",
    ),
)


def _rows(session: Session, trained: Trained) -> list[Row]:
    """Return the validations of the whole run, or those of this session if nothing is kept."""
    from llmbench.learn.metrics import bits_per_byte, perplexity

    if session.folder is not None:
        written = session.rows
    else:
        written = [*(row.as_json() for row in trained.steps), *(row.as_json() for row in trained.validations)]
    losses = {row["step"]: row["loss"] for row in written if "loss" in row}
    return [
        Row(
            row["step"],
            row["tokens"],
            losses.get(row["step"]),
            row["validation_loss"],
            perplexity(row["validation_loss"]),
            bits_per_byte(row["validation_loss"]),
        )
        for row in written
        if "validation_loss" in row
    ]


def _unread(session: Session) -> list[str]:
    """Return a note if the last validation of the schedule does not read the whole validation part."""
    from llmbench.learn.loop import LAST_VALIDATION

    tokens = len(session.data.validation)
    if tokens <= LAST_VALIDATION:
        return []
    return [f"the last validation reads {LAST_VALIDATION:,} of {tokens:,} bytes, in windows at equal distances"]


def document(
    session: Session, trained: Trained, inputs: dict[str, Any], vocabulary: str, environment: Environment
) -> Document:
    """Return the document of a run that has ended or stopped.

    `inputs`: the arguments of the command. `vocabulary`: how the vocabulary of the model changed; empty if it did not.
    """
    state, data, settings = session.state, session.data, session.state.settings
    rows = _rows(session, trained)
    last, speed = rows[-1], settings.tokens * len(trained.steps) / max(1e-9, trained.seconds)
    clipped = sum(row.clipped for row in trained.steps) / len(trained.steps)
    step = trained.steps[-1]
    mfu = (step.mfu or 0.0) * speed / step.tokens_per_s
    kept = (
        "nothing is kept; `-o FOLDER` keeps checkpoints and metrics"
        if session.folder is None
        else f"{session.folder}: checkpoint of step {state.step:,}, and metrics.jsonl"
    )
    if session.folder is not None and state.step < settings.steps:
        kept += f". `llmbench train --resume {session.folder}` goes on to step {settings.steps:,}"
    devices = session.ranks.size
    where, peak = place(environment), f"{si(session.peak)}FLOP/s"
    if devices > 1:
        where, peak = f"{where} · {devices} processes", f"{devices} × {peak}"
    floor = "" if data.floor is None else f" No model can get below {data.floor:.3f} nats, the entropy of the source."
    block = Block(
        answer=f"After {plural(last.step, 'step')}, the validation loss is {last.validation_loss:.3f} nats per byte "
        f"(perplexity {fixed(last.perplexity, 2)}, {last.bits_per_byte:.3f} bits per byte). "
        f"Guessing by frequency alone gets {data.unigram:.3f} nats.{floor}",
        headline=" · ".join(filter(None, (headline(state.spec), vocabulary)))
        + f"\n{data.name}: {len(data.train):,} bytes for training, {len(data.validation):,} for validation"
        + f"\n{settings.optimizer} · batch {settings.batch} × {settings.seq_len} · learning rate {settings.lr:g}, "
        f"{settings.schedule}, warm-up {settings.warmup} · {settings.precision} · seed {settings.seed}",
        table=table(FIELDS, rows),
        lines=[
            f"{where} · {speed:,.0f} tokens/s · MFU {percent(mfu)} of {peak} ({session.peak_source})",
            f"gradients clipped in {percent(clipped)} of {plural(len(trained.steps), 'step')}",
            kept,
        ],
        notes=[*data.notes, *_unread(session), *session.notes],
    )
    final = last._asdict()
    return Document(
        command="train",
        inputs=inputs | {"data": state.data, "settings": settings},
        environment=msgspec.structs.asdict(environment),
        also={
            "final": final,
            "unigram": data.unigram,
            "floor": data.floor,
            "vocab_size": data.vocab_size,
            "seconds": step.seconds,
            "tokens_per_s": speed,
            "devices": devices,
            "mfu": mfu,
            "peak_flops_per_s": session.peak,
            "peak_source": session.peak_source,
            "clipped_share": clipped,
            "folder": None if session.folder is None else str(session.folder),
        },
        rows_key="validations",
        rows=records(FIELDS, rows),
        blocks=[block],
    )
