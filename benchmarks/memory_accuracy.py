"""Hold predicted training memory against published measurements.

    python benchmarks/memory_accuracy.py

Prints one row a run: what was measured, what llmbench says, and the error. Nothing is fitted: every run is described
by its layout and recipe alone, and the model, precision and kernels of a source are the same for all its runs.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.render import render
from llmbench.sizing.memory import Memory, training_memory
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Dense
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Layer, ModelSpec, Norm
from llmbench.spec.override import override
from llmbench.spec.position import LearnedPositions

BOUNDS = {"korthikanti": 0.02, "simumax": 0.05, "torchtitan": 0.10}
"""The error we aim at, by source."""

STACK = {"korthikanti": "fused", "simumax": "fused", "torchtitan": "eager"}
"""Whose kernels ran: Megatron's fused ones, or plain torch modules."""


def model_of(described: dict[str, Any]) -> ModelSpec:
    """The spec of a run: a GPT of given sizes, or a bundled model cut to fewer layers."""
    if described.get("preset") == "gpt":
        hidden, heads, layers = described["hidden_size"], described["heads"], described["num_hidden_layers"]
        mixer = Attention(
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=hidden // heads,
            qkv_bias=True,
            output_bias=True,
        )
        return ModelSpec(
            name=f"gpt-{layers}x{hidden}",
            source="arXiv 2205.05198",
            pattern=f"{layers}*block",
            layers={"block": Layer(mixer=mixer, ffn=Dense(intermediate_size=4 * hidden, bias=True))},
            vocab_size=described["vocab_size"],
            hidden_size=hidden,
            tie_word_embeddings=True,
            positions=LearnedPositions(num_positions=2048),
            norm=Norm(kind="layernorm", bias=True),
        )
    changes = {key: value for key, value in described.items() if key != "name"}
    return override(load_bundled(described["name"]), changes)


def predict(run: dict[str, Any]) -> Memory:
    """What llmbench says of a run."""
    return training_memory(
        model_of(run["model"]),
        run["seq"],
        micro_batch=run.get("micro_batch", 1),
        micro_batches=run.get("micro_batches"),
        layout=Layout.parse(run["layout"]),
        precision="mixed-fp32-grads",
        recompute=run.get("recompute", "none"),
        attention=run.get("attention", "flash"),
        kernels=STACK[run["source"]],  # type: ignore[arg-type]
        dropout=run.get("dropout", False),
    )


def figure(run: dict[str, Any], memory: Memory) -> float:
    """The bytes of `memory` that the run's published figure is about."""
    if run["quantity"] == "activations":
        return memory.held_bytes["activations"]
    if run["quantity"] == "states":  # the source counts 12·L·h² parameters of layers, spread over all stages alike
        layout, sizes = Layout.parse(run["layout"]), run["model"]
        count = model_of(sizes)
        layers = training_memory(
            override(count, {"vocab_size": 1, "positions": {"kind": "none"}}),
            run["seq"],
            layout=layout,
            precision="mixed-fp32-grads",
        )
        return sum(layers.held_bytes[part] for part in ("weights", "gradients", "optimizer"))
    return memory.reserved_bytes if run["quantity"] == "reserved" else memory.peak_bytes


def main() -> None:
    """Print the table."""
    runs = tomllib.loads((Path(__file__).with_name("memory_published.toml")).read_text())["runs"]
    rows: list[list[Any]] = []
    for run in runs:
        memory = predict(run)
        ours, measured = figure(run, memory) / 2**30, run["gib"]
        error = ours / measured - 1
        bound = BOUNDS[run["source"]]
        rows.append(
            [
                run["id"],
                run["quantity"],
                run["layout"],
                measured,
                ours,
                f"{error:+.1%}",
                f"{bound:.0%}",
                "yes" if abs(error) <= bound else "NO",
                memory.moment,
            ]
        )
    columns = [
        Column("run"),
        Column("quantity"),
        Column("layout"),
        Column("measured (GiB)", "number"),
        Column("predicted (GiB)", "number"),
        Column("error", "number"),
        Column("bound", "number"),
        Column("within"),
        Column("peak falls in"),
    ]
    block = Block(
        headline="training memory: published measurements and predictions",
        table=Table(columns=columns, rows=rows),
    )
    render(
        Document(command="memory_accuracy", inputs={}, rows_key="runs", rows=[], blocks=[block]),
        "table",
        sys.stdout,
    )


if __name__ == "__main__":
    main()
