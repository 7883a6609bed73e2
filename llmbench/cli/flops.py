"""`llmbench flops`: the FLOPs of a prefill, a decoding step or a training step."""

from __future__ import annotations

from typing import Annotated

import typer

from llmbench.answers.flops import By, ScoredPairs, counted, document, workload_of
from llmbench.cli.options import (
    NO_RECOMPUTE,
    ONE,
    SEQS,
    As,
    Batches,
    Choices,
    Explain,
    Models,
    Output,
    Seqs,
    Set,
    answer,
    choices_of,
    load,
    prints_tables,
    token_count,
)
from llmbench.sizing.workload import Phase, Recompute


def _start(text: str | int) -> int:
    """Parse a number of tokens that can be 0."""
    return 0 if str(text).strip() == "0" else token_count(text)


PhaseOption = Annotated[
    Phase,
    typer.Option(
        "--phase",
        help="prefill: forward pass over --seq tokens. decode: one new token after --seq cached tokens. train: forward "
        "and backward pass over --seq tokens.",
    ),
]
ScorePairs = Annotated[
    ScoredPairs,
    typer.Option(
        "--attention",
        help="causal: count only the (query, key) pairs that the mask allows. full: count all (query, key) pairs, as "
        "FLOP counters do.",
    ),
]
RecomputeOption = Annotated[
    Choices,
    typer.Option(
        "--recompute",
        **choices_of(
            Recompute,
            "Activations that the backward pass computes again. selective: attention scores. every-second: all "
            "activations except those of attention and of every second matrix product. full: all activations of a "
            "layer. A sweep: none,full.",
        ),
    ),
]
ChunkOption = Annotated[
    int | None,
    typer.Option(
        "--chunk",
        metavar="TOKENS",
        help="Tokens of a prompt that the same step processes, as engines do in chunked prefill (--phase decode only).",
        show_default=False,
        parser=token_count,
    ),
]
ChunkStart = Annotated[
    int | None,
    typer.Option(
        "--chunk-start",
        metavar="TOKENS",
        help="Tokens of this prompt that are in the cache. The chunk reads their keys. Default: none.",
        show_default=False,
        parser=_start,
    ),
]
LoraOption = Annotated[
    str,
    typer.Option(
        "--lora",
        metavar="ITEMS",
        help="Train low-rank adapters on frozen weights: r=16,alpha=32,targets=q,v. See `llmbench memory` (--phase "
        "train only).",
        show_default=False,
    ),
]
ByOption = Annotated[
    By,
    typer.Option(
        "--by",
        help="Show one row per component, or one row per op. op also counts the kernels that each op launches, and its "
        "JSON lists all ops.",
    ),
]


@prints_tables
def command(
    models: Models,
    phase: PhaseOption = "prefill",
    seq: Seqs = SEQS,
    batch: Batches = ONE,
    chunk: ChunkOption = None,
    chunk_start: ChunkStart = None,
    attention: ScorePairs = "causal",
    recompute: RecomputeOption = NO_RECOMPUTE,
    lora: LoraOption = "",
    by: ByOption = "component",
    explain: Explain = False,
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Count the FLOPs of a prefill, a decoding step or a training step.

    A multiply-add counts as 2 FLOPs. Logits are counted at every position, but only for the last token of a --chunk.
    Only the experts that a token uses are counted. Elementwise work (norms, activations, softmax) is not counted.

    Examples:

      llmbench flops llama2-7b --seq 8192

      llmbench flops mixtral-8x7b --phase decode --seq 8192 --batch 32

      llmbench flops llama3-8b --phase decode --seq 8k --batch 32 --chunk 512 --chunk-start 1536

      llmbench flops llama3-8b --phase train --recompute full --by op

      llmbench flops llama3-8b --phase train --lora r=16,targets=all-linear

      llmbench flops llama3-8b --seq 1k..128k

      llmbench flops gemma3-27b --attention full --format json
    """
    workloads = [
        workload_of(phase, tokens, sequences, masked_pairs=attention == "full") for tokens in seq for sequences in batch
    ]
    specs = [load(text, set) for text in models]
    rows = [
        row
        for spec in specs
        for workload in workloads
        for again in recompute
        for row in counted([spec], workload, again, lora, by=by, chunk=chunk, chunk_start=chunk_start)
    ]
    inputs = {
        "models": models,
        "phase": phase,
        "seq_len": seq.as_input,
        "batch": batch.as_input,
        "chunk": chunk,
        "chunk_start": chunk_start,
        "attention": attention,
        "recompute": recompute.as_input,
        "lora": lora,
        "by": by,
        "set": set or [],
    }
    answer(document(rows, inputs, explain=explain, tables=format != "json"), format, output)
