"""`llmbench fit`: whether a model fits on a device with an inference engine, and how many users it then serves."""

from __future__ import annotations

from typing import Annotated

import typer

from llmbench.answers.fit import ENGINE, document, fitted
from llmbench.cli.options import (
    ONE,
    As,
    Choices,
    Counts,
    Explain,
    OneModel,
    Output,
    Set,
    answer,
    decimal_number,
    load,
    names,
    positive_integer,
    prints_tables,
    reading,
    sequence_counts,
    token_counts,
)
from llmbench.sizing.serving.fit import LENGTH
from llmbench.spec.weights.formats import formats_in

Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="Device, for example h100. Can be repeated. Default: all built-in devices, and how many of each suffice.",
        show_default=False,
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option(
        "--gpus",
        metavar="N",
        help="Number of GPUs. They get the first layout that suffices, of those that engines use.",
        parser=positive_integer,
        show_default=False,
    ),
]
LayoutOption = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="LAYOUT",
        help="Parallel layout, for example tp=8,ep=8 or dp=8,ep=8. The experts use the GPUs of the attention.",
        show_default=False,
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="ENGINE",
        help="Inference engine, and its version: vllm, vllm@0.11, sglang, trtllm, llamacpp or ideal. The constants of "
        "its profile can be replaced: vllm@0.19,sequences=64,outside_torch=1.5GiB.",
    ),
]
Utilization = Annotated[
    float | None,
    typer.Option(
        "--utilization",
        metavar="SHARE",
        help="Share of the memory that the engine may use, from 0 to 1. Default: that of the engine.",
        parser=decimal_number,
        show_default=False,
    ),
]
Length = Annotated[
    Counts | None,
    typer.Option(
        "--seq",
        metavar="TOKENS",
        help="Tokens per request, for example 8192 or 8k. A sweep: 8k,32k,128k, or 8k..128k, which doubles up to the "
        f"last. Default: {LENGTH}, or the context length of the model if it is shorter.",
        parser=token_counts,
        show_default=False,
    ),
]
Users = Annotated[
    Counts,
    typer.Option(
        "--users",
        metavar="N",
        help="Requests that the engine serves at once. A sweep: 1,8,64, or 1..64.",
        parser=sequence_counts,
    ),
]
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights",
        metavar="FORMAT",
        help="Format of the weights, for example fp8 or gptq,bits=8. Can be repeated, and fp8,awq is a sweep. Default: "
        "the published files.",
        show_default=False,
    ),
]
CacheFormat = Annotated[
    Choices | None,
    typer.Option(
        "--kv-dtype",
        metavar="FORMAT",
        help="Format of the KV cache, for example fp8 or q8_0. A sweep: bf16,fp8. Default: that of the activations.",
        parser=names,
        show_default=False,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="Draft model for speculative decoding, in its published files. Its weights and its cache share the GPUs.",
        show_default=False,
    ),
]
Price = Annotated[
    str | None,
    typer.Option(
        "--price",
        metavar="ITEMS",
        help="Your price of one GPU per hour, because llmbench knows none: 2.5 for all devices, or h100=2.5,l40s=1.1.",
        show_default=False,
    ),
]


@prints_tables
def command(
    model: OneModel,
    device: Devices = None,
    gpus: Gpus = None,
    layout: LayoutOption = "",
    engine: EngineOption = ENGINE,
    utilization: Utilization = None,
    seq: Length = None,
    users: Users = ONE,
    weights: Weights = None,
    kv_dtype: CacheFormat = None,
    draft: Draft = None,
    price: Price = None,
    explain: Explain = False,
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Say whether a model fits on a device with an inference engine, and how many users it then serves.

    The command divides the memory of a GPU as the engine does: weights as the engine loads them, activations of its
    largest step, memory outside PyTorch, and the cache in the engine's blocks and pools. If the model does not fit, it
    names the changes of one or two settings with which it does.

    The exit code is 1 if the model fits in none of the cases.

    Examples:

      llmbench fit llama3-8b --device h100 --seq 8k --users 32

      llmbench fit llama3.3-70b --seq 32k

      llmbench fit deepseek-v3 --device h200 --layout tp=8,ep=8 --users 64

      llmbench fit qwen3-32b --device rtx-4090 --weights fp8 --weights awq

      llmbench fit llama3.1-8b --device l40s --seq 8k,32k,128k --users 1,16 --kv-dtype bf16,fp8

      llmbench fit gemma3-27b --device h100 --engine vllm@0.11,sequences=128 --explain

      llmbench fit llama3.3-70b --device h100 --gpus 4 --draft llama3.2-1b

      llmbench fit gpt-oss-120b --device h100 --gpus 2 --price 2.5 --format json
    """
    formats = list(dict.fromkeys(format for text in weights or () for format in formats_in(text)))
    with reading(model, draft):
        spec = load(model, set)
        rows = fitted(
            spec,
            model=None if set else model,
            draft=None if draft is None else load(draft, None),
            draft_model=draft or "",
            devices=device or (),
            gpus=gpus,
            layout=layout,
            engine=engine,
            utilization=utilization,
            seq=seq,
            users=users,
            weights=formats,
            kv=kv_dtype,
            price=price,
            explain=explain,
        )
    inputs = {
        "model": model,
        "devices": device or [],
        "gpus": gpus,
        "layout": layout,
        "engine": engine,
        "utilization": utilization,
        "seq_len": seq.as_input if seq else rows[0].question.seq,
        "users": users.as_input,
        "weights": formats,
        "kv_dtype": kv_dtype.as_input if kv_dtype else None,
        "draft": draft,
        "price": price,
        "set": set or [],
    }
    answer(document(rows, inputs, tables=format != "json"), format, output)
    if not any(row.fits for row in rows):
        raise typer.Exit(1)
