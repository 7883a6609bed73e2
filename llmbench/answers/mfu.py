"""Answers of `llmbench mfu`: the utilization of a training run by several conventions, as rows and a table."""

from __future__ import annotations

from typing import Any

from llmbench.answers.about import MODEL_FIELDS, AboutModel, model_block
from llmbench.errors import LLMBenchError
from llmbench.report.document import Document, table
from llmbench.report.fields import Field, inside, records
from llmbench.report.units import billions, duration, plural, si
from llmbench.sizing.mfu import Convention, conventions, peak_flops_per_s, utilization
from llmbench.sizing.workload import Recompute
from llmbench.spec.catalog import find_device
from llmbench.spec.device import DType
from llmbench.spec.model import ModelSpec


class Utilized(AboutModel, kw_only=True):
    """The utilization of a run by one convention.

    tokens: tokens per sequence. device: name of the device. peak: its dense peak in `precision`, in FLOP/s.
    tokens_per_s: tokens per second of all GPUs. step_s, batch: None if the sequences per step are unknown.
    expected: whether the speed is that of an expected MFU. training_tokens: tokens of the whole training, or None.
    """

    convention: Convention
    device: str
    gpus: int
    precision: DType
    peak: float
    tokens_per_s: float
    batch: int | None
    step_s: float | None
    recompute: Recompute
    expected: bool
    training_tokens: float | None

    @property
    def training_s(self) -> float | None:
        """The seconds of the whole training, or None."""
        return None if self.training_tokens is None else self.training_tokens / self.tokens_per_s

    @property
    def flops_per_token(self) -> float:
        """The FLOPs of the training step per token."""
        return self.convention.flops / self.tokens

    @property
    def flops_per_s(self) -> float:
        """The FLOPs per second of one GPU."""
        return self.flops_per_token * self.tokens_per_s / self.gpus

    @property
    def utilization(self) -> float:
        """The share of the peak."""
        return utilization(self.convention.flops, self.tokens, self.tokens_per_s, self.gpus, self.peak)


FIELDS: tuple[Field[Utilized], ...] = (
    *MODEL_FIELDS,
    *inside(
        "convention",
        Field(
            "convention",
            "convention",
            value=lambda row: row.convention.key,
            text=lambda row: row.convention.name,
            description="how the FLOPs are counted: `6n` (N: all parameters), `6n_active` (active parameters, with "
            "experts), `6n_no_embeddings`, `6n_causal` and `6n_full` (6·N, N: active parameters, and attention "
            "with the pairs inside the mask or with all pairs), `model_causal` and `model_full` (sums over the ops of "
            "the model), `hardware_causal` and `hardware_full` (also FLOPs that the backward pass computes again)",
        ),
        Field(
            "kind",
            "kind",
            text=lambda row: row.convention.kind.upper(),
            description="`mfu`: FLOPs that the model needs. `hfu`: also those that are computed again",
        ),
    ),
    Field("utilization", "share of peak", "percent", description="`flops_per_s_per_gpu` / `peak_flops_per_s`"),
    Field(
        "flops_per_s_per_gpu",
        "per GPU",
        "tflops_per_s",
        value=lambda row: row.flops_per_s,
        spare=1,
        description="FLOPs per second of one GPU",
    ),
    Field("flops_per_token", "per token", "gflops", spare=2, description="FLOPs of the training step per token"),
    Field(
        "used_by",
        "used by",
        value=lambda row: row.convention.used_by or None,
        text=lambda row: row.convention.used_by,
        description="who counts so; null if nobody is named",
        spare=3,
    ),
    Field(
        "formula",
        value=lambda row: row.convention.formula,
        description="the formula of the FLOPs of one sequence, with numbers",
    ),
    Field("device", description="name of the device"),
    Field("gpus", description="value of `--gpus`"),
    Field("precision", description="value of `--precision`: number format of the matrix products"),
    Field("peak_flops_per_s", value=lambda row: row.peak, description="dense peak of the device in this format"),
    Field("tokens_per_s", description="tokens per second of all GPUs together"),
    Field("step_s", description="seconds per optimizer step; null without `--batch`"),
    Field("batch", description="value of `--batch`: sequences per step of all GPUs together, or null"),
    Field("training_tokens", description="value of `--tokens`: tokens of the whole training, or null"),
    Field("training_s", description="seconds of the whole training: `training_tokens` / `tokens_per_s`, or null"),
    Field("seq_len", value=lambda row: row.tokens, description="value of `--seq`: tokens per sequence"),
    Field("recompute", description="value of `--recompute`"),
)


LEAST, MOST = 1e-9, 1e15
"""The limits of a time in seconds, and of a number of tokens per second."""
MOST_TOKENS = 1e18
"""The largest number of tokens of a whole training."""
EXPECTED = "model_causal"
"""The convention of an expected MFU."""


def utilized(
    spec: ModelSpec,
    *,
    device: str,
    gpus: int = 1,
    seq: int = 4096,
    batch: int | None = None,
    step_s: float | None = None,
    tokens_per_s: float | None = None,
    mfu: float | None = None,
    training_tokens: float | None = None,
    precision: DType = "bf16",
    recompute: Recompute = "none",
) -> list[Utilized]:
    """Return the utilization of a training run by each convention.

    batch: sequences per step of all GPUs together. step_s: seconds per step. tokens_per_s: tokens per second of all
        GPUs together, in place of step_s. mfu: expected share of the peak by the convention EXPECTED, in place of a
        measured speed. training_tokens: tokens of the whole training.

    Raises LLMBenchError for an unknown device, for a format that it does not compute, and for missing or contradicting
    times.
    """
    if sum(speed is not None for speed in (step_s, tokens_per_s, mfu)) != 1:
        raise LLMBenchError(
            "--step-time, --tokens-per-s and --mfu: exactly one of them is needed",
            hint="for example --step-time 1.2s --batch 512, or --tokens-per-s 500000, or --mfu 40% to plan a training",
        )
    for option, value in (("--step-time", step_s), ("--tokens-per-s", tokens_per_s), ("--mfu", mfu)):
        most = MOST if option != "--mfu" else 1
        if value is not None and not LEAST <= value <= most:
            raise LLMBenchError(f"{option} {value:g}: must be from {LEAST:g} to {most:g}")
    if training_tokens is not None and not 1 <= training_tokens <= MOST_TOKENS:
        raise LLMBenchError(f"--tokens {training_tokens:g}: must be from 1 to {MOST_TOKENS:g}")
    if step_s is not None and batch is None:
        raise LLMBenchError(
            "--batch: --step-time needs the sequences per step of all GPUs together",
            hint="add --batch, for example --batch 512",
        )
    found = find_device(device)
    peak = peak_flops_per_s(found, precision)
    counted = conventions(spec, seq, recompute)
    if step_s is not None:
        speed = (batch or 0) * seq / step_s
    elif mfu is not None:
        (expected,) = (each for each in counted if each.key == EXPECTED)
        speed = mfu * gpus * peak * seq / expected.flops
    else:
        assert tokens_per_s is not None
        speed = tokens_per_s
    return [
        Utilized(
            spec=spec,
            tokens=seq,
            convention=convention,
            device=found.name,
            gpus=gpus,
            precision=precision,
            peak=peak,
            tokens_per_s=speed,
            batch=batch,
            step_s=step_s if batch is None else batch * seq / speed,
            recompute=recompute,
            expected=mfu is not None,
            training_tokens=training_tokens,
        )
        for convention in counted
    ]


def document(rows: list[Utilized], inputs: dict[str, Any], *, explain: bool = False, tables: bool = True) -> Document:
    """Return the answer. `inputs`: the options. `explain`: show the formulas. `tables`: whether people will read it."""
    answer = Document(command="mfu", inputs=inputs, rows_key="conventions", rows=records(FIELDS, rows), blocks=[])
    if not tables:
        return answer
    row = rows[0]
    by_key = {each.convention.key: each for each in rows}
    first, full, hardware = (by_key[key].utilization for key in IN_THE_ANSWER)
    shown = [field for field in FIELDS if field.heading and field.name != "model"]
    if explain:
        shown.append(
            Field(
                "formula",
                "FLOPs of one sequence",
                value=lambda each: each.convention.formula,
                text=lambda each: f"{each.convention.formula} = {each.convention.flops:,}",
                wraps=True,
            )
        )
    answered = [by_key[key] for key in IN_THE_ANSWER]
    doubtful = _warning(answered)
    others = "" if doubtful else _warning(rows)
    block = model_block(
        row,
        context=_context(row),
        table=table(shown, rows),
        lines=[
            *_repeated(by_key["hardware_causal"]),
            *_lines(row, explain),
            *([f"warning: {others}"] if others else []),
        ],
    )
    block.answer = (f"Warning: {doubtful}.\n" if doubtful else "") + (
        f"{row.spec.name} on {plural(row.gpus, 'GPU')} ({row.device}): MFU {first:.1%} with the pairs inside the mask, "
        f"{full:.1%} with all pairs; HFU {hardware:.1%}."
    )
    if row.training_s is not None:
        block.answer = f"{_training_time(row)}\n{block.answer}"
    answer.blocks = [block]
    return answer


def _context(row: Utilized) -> str:
    peak = f"{row.peak / 1e12:,.1f} TFLOP/s dense {row.precision}"
    step = "" if row.step_s is None else f" · {row.step_s:.4g} s per step of {plural(row.batch or 0, 'sequence')}"
    again = "no recomputation" if row.recompute == "none" else f"recompute {row.recompute}"
    return (
        f"training · {row.tokens_per_s:,.0f} tokens per second{step} · {plural(row.tokens, 'token')} per sequence\n"
        f"{row.gpus:,} × {row.device} · peak {peak} each · {again}"
    )


def _training_time(row: Utilized) -> str:
    """Return the sentence that says how long the whole training takes."""
    assert row.training_tokens is not None
    assert row.training_s is not None
    hours = row.training_s / 3600 * row.gpus
    speed = "the expected MFU" if row.expected else "the measured speed"
    spent = f", which are {hours:,.0f} GPU hours" if hours >= 10 else ""
    return f"At {speed}, {billions(row.training_tokens)} tokens take {duration(row.training_s)}{spent}."


def _lines(row: Utilized, explain: bool) -> list[str]:
    lines = ["share of peak = FLOPs per token × tokens per second / (GPUs × peak)"]
    if explain:
        share = f"{row.flops_per_token:,.0f} × {row.tokens_per_s:,.2f} / ({row.gpus:,} × {row.peak:,.0f})"
        lines.append(f"{row.convention.name}: {share} = {row.utilization:.4f}")
        if row.step_s is not None:
            lines.append(
                f"tokens per second = {row.batch:,} × {row.tokens:,} / {row.step_s:g} s = {row.tokens_per_s:,.2f}"
            )
    return lines


def _repeated(row: Utilized) -> list[str]:
    """Return a line that says why HFU is higher than MFU."""
    if not row.convention.repeated:
        return []
    terms = (f"{si(flops / row.tokens)}FLOPs {noun}" for flops, noun in row.convention.repeated)
    return [f"per token, HFU also counts what the backward pass computes again: {' and '.join(terms)}"]


IN_THE_ANSWER = ("model_causal", "model_full", "hardware_causal")
"""The conventions whose utilization the first sentence states."""


def _warning(rows: list[Utilized]) -> str:
    """Return a text about the convention that exceeds the peak most, or an empty text if none does."""
    over = [row for row in rows if row.utilization > 1]
    if not over:
        return ""
    row = max(over, key=lambda each: each.utilization)
    if all(each.utilization > 1 for each in rows):
        causes = "the time, --gpus, --batch (all GPUs together), --seq or the device does not match the run"
    else:
        causes = "this convention counts more FLOPs than were computed, or an option does not match the run"
    return f"{row.convention.name} gives {row.utilization:,.0%} of the peak, which is not possible: {causes}"
