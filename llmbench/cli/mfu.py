"""`llmbench mfu`: the share of the devices' peak that a training run reaches, by several conventions."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import typer

from llmbench.answers.mfu import document, utilized
from llmbench.cli.options import (
    SEQ,
    As,
    Explain,
    OneModel,
    Output,
    Seq,
    Set,
    answer,
    load,
    positive_integer,
    prints_tables,
)
from llmbench.sizing.items import amount, decimal
from llmbench.sizing.workload import Recompute

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "": 1.0}


def _positive(text: str, what: str) -> float:
    try:
        number = decimal(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise typer.BadParameter(f"{text!r} is not {what}")
    return number


def duration(text: str | float) -> float:
    """Parse a time such as `1.2s`, `850ms` or `2min`. A number without a unit is in seconds. Return seconds."""
    whole = str(text).strip()
    number = whole.rstrip("abcdefghijklmnopqrstuvwxyz")
    unit = whole[len(number) :]
    if unit not in _UNITS:
        raise typer.BadParameter(f"{whole!r} is not a time, such as 1.2s or 850ms")
    return _positive(number, "a time, such as 1.2s or 850ms") * _UNITS[unit]


def rate(text: str | float) -> float:
    """Parse a number of tokens per second, such as 512000 or 512k (512,000)."""
    return _amount(text, "a number of tokens per second, such as 512000, 512,000 or 512k")


def tokens(text: str | float) -> float:
    """Parse a number of tokens, such as 300B or 1.5T."""
    return _amount(text, "a number of tokens, such as 300B or 1.5T")


def share(text: str | float) -> float:
    """Parse a share such as 40% or 0.4. Return a number from 0 to 1."""
    whole = str(text).strip()
    number = _positive(whole.removesuffix("%"), "a share, such as 40% or 0.4")
    number = number / 100 if whole.endswith("%") else number
    if number > 1:
        raise typer.BadParameter(f"{whole!r} is more than the peak; write 40% or 0.4")
    return number


def _amount(text: str | float, what: str) -> float:
    try:
        return amount(str(text))
    except ValueError:
        raise typer.BadParameter(f"{str(text)!r} is not {what}") from None


Device = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="Device of the run, for example h100.", show_default=False),
]
Gpus = Annotated[int, typer.Option("--gpus", metavar="N", help="Number of GPUs of the run.", parser=positive_integer)]
StepTime = Annotated[
    float | None,
    typer.Option(
        "--step-time",
        metavar="TIME",
        help="Measured time of one optimizer step, for example 1.2s or 850ms. It needs --batch.",
        parser=duration,
        show_default=False,
    ),
]
TokensPerS = Annotated[
    float | None,
    typer.Option(
        "--tokens-per-s",
        metavar="N",
        help="Tokens per second of all GPUs together, in place of --step-time. For a rate per GPU use --gpus 1.",
        parser=rate,
        show_default=False,
    ),
]
ExpectedMfu = Annotated[
    float | None,
    typer.Option(
        "--mfu",
        metavar="SHARE",
        help="Expected MFU, for example 40%, in place of a measured speed. It counts the model FLOPs with the pairs "
        "inside the mask.",
        parser=share,
        show_default=False,
    ),
]
Tokens = Annotated[
    float | None,
    typer.Option(
        "--tokens",
        metavar="N",
        help="Tokens of the whole training, for example 300B. The answer then says how long it takes.",
        parser=tokens,
        show_default=False,
    ),
]
Batch = Annotated[
    int | None,
    typer.Option(
        "--batch",
        metavar="N",
        help="Sequences per optimizer step of all GPUs together (the global batch).",
        parser=positive_integer,
        show_default=False,
    ),
]
Precision = Annotated[
    Literal["bf16", "fp16", "tf32", "fp32", "fp8", "fp4"],
    typer.Option("--precision", help="Number format of the matrix products, whose dense peak is the measure."),
]
RecomputeOption = Annotated[
    Recompute,
    typer.Option("--recompute", help="Activations that the backward pass computes again. Only HFU counts them."),
]


@prints_tables
def command(
    model: OneModel,
    device: Device,
    gpus: Gpus = 1,
    step_time: StepTime = None,
    tokens_per_s: TokensPerS = None,
    mfu: ExpectedMfu = None,
    tokens: Tokens = None,
    batch: Batch = None,
    seq: Seq = SEQ,
    precision: Precision = "bf16",
    recompute: RecomputeOption = "none",
    explain: Explain = False,
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Compute the model FLOPs utilization (MFU) and the hardware FLOPs utilization (HFU) of a training run.

    Papers count FLOPs differently. The table has a row for each convention: 6·N with several meanings of N, 6·N with
    attention, the FLOPs of the model itself, and these FLOPs with what the backward pass computes again. MFU does not
    count the latter. The peak is the dense peak of the device in the number format of the products.

    With --tokens, the answer says how long a training takes. The speed is a measured one, or that of --mfu.

    Examples:

      llmbench mfu llama3-8b --device h100 --gpus 64 --step-time 8.5s --batch 512 --seq 8k

      llmbench mfu llama3-70b --device h100 --gpus 256 --tokens-per-s 212k --recompute full --seq 8k

      llmbench mfu mixtral-8x7b --device a100 --tokens-per-s 3000 --explain

      llmbench mfu llama3-8b --device h100 --gpus 8 --tokens-per-s 90k --precision fp8 --format json

      llmbench mfu llama3.2-3b --device h100 --gpus 64 --mfu 40% --tokens 300B --seq 8k
    """
    rows = utilized(
        load(model, set),
        device=device,
        gpus=gpus,
        seq=seq,
        batch=batch,
        step_s=step_time,
        tokens_per_s=tokens_per_s,
        mfu=mfu,
        training_tokens=tokens,
        precision=precision,
        recompute=recompute,
    )
    inputs = {
        "model": model,
        "device": device,
        "gpus": gpus,
        "step_time_s": step_time,
        "tokens_per_s": tokens_per_s,
        "mfu": mfu,
        "tokens": tokens,
        "batch": batch,
        "seq_len": seq,
        "precision": precision,
        "recompute": recompute,
        "set": set or [],
    }
    answer(document(rows, inputs, explain=explain, tables=format != "json"), format, output)
