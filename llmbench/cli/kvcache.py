"""`llmbench kvcache`: compute the size of the KV cache and the recurrent states of a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from llmbench.answers.kvcache import cached, document
from llmbench.cli.options import (
    BF16,
    MODEL_HELP,
    ONE,
    SEQS,
    As,
    Batches,
    CacheType,
    Choices,
    Explain,
    Output,
    Seqs,
    Set,
    answer,
    choices_of,
    load,
    positive_integer,
    prints_tables,
)
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.model import ModelSpec

OptionalModels = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help=MODEL_HELP + " Default: a dozen models, one per kind of cache."),
]
All = Annotated[bool, typer.Option("--all", help="Compare all models of `llmbench specs list`.")]
CacheFormat = Annotated[
    Choices,
    typer.Option(
        "--kv-dtype",
        **choices_of(
            CacheType,
            "Format of the cache: a number format without scales, or a format of an engine with its scales. A sweep: "
            "bf16,fp8.",
        ),
    ),
]
BlockSize = Annotated[
    int,
    typer.Option(
        "--block-size",
        metavar="TOKENS",
        help="Tokens per cache block. An inference engine allocates the cache in blocks.",
        parser=positive_integer,
    ),
]


@prints_tables
def command(
    models: OptionalModels = None,
    all: All = False,
    seq: Seqs = SEQS,
    batch: Batches = ONE,
    kv_dtype: CacheFormat = BF16,
    block_size: BlockSize = 16,
    explain: Explain = False,
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Compute the size of the KV cache and the recurrent states of a model.

    The table shows bytes per token, per sequence and per batch. Sliding windows, latent attention and hybrid models are
    counted exactly. The table also shows the bytes that an engine reserves if it allocates whole blocks and ignores
    sliding windows.

    Examples:

      llmbench kvcache --seq 4096

      llmbench kvcache --all --format csv

      llmbench kvcache llama3-8b --seq 131072 --batch 16

      llmbench kvcache deepseek-v3 --kv-dtype fp8 --explain

      llmbench kvcache llama3-8b --seq 8k..128k --batch 1,8

      llmbench kvcache llama3-8b mixtral-8x7b --kv-dtype bf16,fp8

      llmbench kvcache gemma3-27b jamba-v0.1 --seq 32768 --format markdown
    """
    specs = [load(text, set) for text in models] if models and not all else _built_in(models, set, all=all)
    options: dict[str, Any] = {"block_size": block_size, "explain": explain}
    rows = [
        row
        for spec in specs
        for tokens in seq
        for sequences in batch
        for number_format in kv_dtype
        for row in cached([spec], tokens, batch=sequences, kv_dtype=number_format, **options)
    ]
    inputs = {
        "models": models or [],
        "all": all,
        "seq_len": seq.as_input,
        "batch": batch.as_input,
        "kv_dtype": kv_dtype.as_input,
        "block_size": block_size,
        "set": set or [],
    }
    sizes = document(rows, inputs, sorted_by_size=not models, tables=format != "json")
    answer(sizes, format, output)


REPRESENTATIVE = (
    "gpt3-175b",  # MHA
    "llama2-7b",  # MHA
    "llama3-8b",  # GQA
    "llama3.1-405b",  # GQA
    "palm-540b",  # MQA
    "mixtral-8x7b",  # GQA, mixture of experts
    "gpt-oss-120b",  # GQA, every second layer with a sliding window
    "gemma3-27b",  # GQA, five of six layers with a sliding window
    "deepseek-v3",  # MLA
    "qwen3-next-80b-a3b",  # linear attention, every fourth layer GQA
    "jamba-v0.1",  # Mamba, every eighth layer GQA
    "mamba2-2.7b",  # recurrent only
)
"""The models that the command compares by default: each kind of cache, and the range of sizes."""


def _built_in(models: list[str] | None, changes: list[str] | None, *, all: bool) -> list[ModelSpec]:
    if models:
        raise typer.BadParameter("--all compares all models, so it takes no MODEL")
    if changes:
        raise typer.BadParameter("--set needs a MODEL to change")
    return [load_bundled(name) for name in (bundled_models() if all else REPRESENTATIVE)]
