"""`llmbench params`: count the parameters of a model, and the parameters that one token uses."""

from __future__ import annotations

from typing import Annotated

import typer

from llmbench.answers.params import By, counted, document
from llmbench.cli.options import As, Explain, Models, Output, Set, WeightsOption, answer, load, prints_tables, reading

ByOption = Annotated[
    By,
    typer.Option("--by", help="Show one row per component, per kind of layer, or per op."),
]


@prints_tables
def command(
    models: Models,
    by: ByOption = "component",
    weights: WeightsOption = None,
    explain: Explain = False,
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Count the parameters of a model exactly.

    The table lists the parameters by component, by kind of layer or by op. The lines below the table show the number of
    parameters that one token uses, and the number of parameters that are not in the total.

    Examples:

      llmbench params llama2-7b

      llmbench params deepseek-v3 mixtral-8x7b --format markdown

      llmbench params llama3-8b --by op --explain

      llmbench params gpt-oss-20b llama3.1-8b --weights awq

      llmbench params llama2-7b --set num_key_value_heads=8

      llmbench params path/to/config.json --format json
    """
    with reading(*models):
        rows = counted([load(text, set) for text in models], weights)
    inputs = {"models": models, "weights": weights, "set": set or []}
    answer(document(rows, inputs, by=by, explain=explain, tables=format != "json"), format, output)
