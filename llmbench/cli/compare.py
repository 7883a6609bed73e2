"""`llmbench compare`: show several models in one table, with a column for each model."""

from __future__ import annotations

from typing import Annotated

import typer

from llmbench.answers.compare import compared, document
from llmbench.cli.options import SEQ, As, Models, Output, Seq, Set, WeightsOption, answer, load, prints_tables, reading
from llmbench.cli.versus import VersusCommand, sides

COMMAND_CLASS = VersusCommand
"""The class of the command. It reads the arguments after `--vs`."""


@prints_tables
def command(
    models: Models,
    vs: Annotated[
        bool,
        typer.Option(
            "--vs",
            help="Compare with what follows: the same models, or the models named after it, with the changes of the "
            "--set options after it.",
        ),
    ] = False,
    seq: Seq = SEQ,
    weights: WeightsOption = None,
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Compare the architectures of several models, and their parameters, memory, KV cache and FLOPs.

    With --vs, compare a model with its variant. A column names the differences.

    Examples:

      llmbench compare gpt2-xl llama2-7b mistral-7b

      llmbench compare deepseek-v3 kimi-k2 qwen3-235b-a22b --seq 32768

      llmbench compare llama2-7b --vs --set num_key_value_heads=8

      llmbench compare llama3-8b gemma2-9b --format markdown
    """
    first, second = sides(models, set or [])
    both = [first, *([] if second is None else [second])]
    with reading(*models):
        rows = [
            compared(load(text, side.changes), seq, weights, tuple(side.changes))
            for side in both
            for text in side.models
        ]
    inputs = {
        "models": first.models,
        "seq_len": seq,
        "weights": weights,
        "set": first.changes,
        "vs": None if second is None else {"models": second.models, "set": second.changes},
    }
    answer(document(rows, inputs, seq, mark=vs, tables=format != "json"), format, output)
