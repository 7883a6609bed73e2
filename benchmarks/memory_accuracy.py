"""Compare predicted training memory with traced steps.

    python benchmarks/memory_accuracy.py             # steps on fake tensors; needs torch, takes a minute

The script prints one row per step: the traced memory, the prediction and the error. `llmbench validate memory
benchmarks/published/training_runs.csv` compares predictions with published measurements.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llmbench.report.document import Block, Document, Table
from llmbench.report.fields import Field
from llmbench.report.render import render
from llmbench.sizing.training import training_memory
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Dense, Gated
from llmbench.spec.mixer import Attention
from llmbench.spec.override import override
from llmbench.spec.position import LearnedPositions

TRACED = [
    # Each entry: (model, --set, tokens, batch, attention, recompute, precision).
    *[
        ("gpt2", {}, 1024, batch, attention, recompute, "mixed")
        for batch, attention, recompute in (
            (1, "flash", "none"),
            (8, "flash", "none"),
            (8, "standard", "none"),
            (8, "flash", "full"),
        )
    ],
    ("gpt2", {}, 512, 4, "standard", "full", "fp32"),
    ("tinyllama-1.1b", {}, 2048, 1, "flash", "none", "mixed"),
    ("tinyllama-1.1b", {}, 2048, 4, "flash", "full", "bf16"),
    ("llama2-7b", {"num_hidden_layers": 2}, 4096, 1, "standard", "none", "mixed"),
    ("llama3-8b", {"num_hidden_layers": 4}, 8192, 1, "flash", "none", "mixed"),
    *[
        ("llama2-7b", {}, 4096, 1, attention, recompute, "mixed")
        for attention in ("flash", "standard")
        for recompute in ("none", "full")
    ],
    ("llama3-8b", {}, 8192, 1, "flash", "none", "mixed"),
    ("gpt2-xl", {}, 1024, 8, "flash", "none", "mixed"),
]
TRACED_BOUND = 0.03


def traced() -> Block:
    """Compare the peak memory of steps that are traced on fake tensors with the predictions. The tracer (tests/oracles)
    uses no formulas."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.oracles.training_memory import trace
    from tests.oracles.training_transformer import Dims, Setup

    rows: list[list[Any]] = []
    errors = []
    for name, changes, seq, batch, attention, recompute, precision in TRACED:
        spec = override(load_bundled(name), changes)
        layer = next(iter(spec.layers.values()))
        mixer, ffn, gpt = layer.mixer, layer.ffn, spec.norm.kind == "layernorm"
        assert isinstance(mixer, Attention)
        assert isinstance(ffn, (Dense, Gated))
        dims = Dims(
            vocab=spec.vocab_size,
            hidden=spec.hidden_size,
            layers=spec.num_hidden_layers,
            heads=mixer.num_attention_heads,
            kv_heads=mixer.num_key_value_heads,
            head_dim=mixer.head_dim,
            intermediate=ffn.intermediate_size,
            tied=spec.tie_word_embeddings,
            positions=spec.positions.num_positions if isinstance(spec.positions, LearnedPositions) else 0,
        )
        setup = Setup(
            style="gpt2" if gpt else "llama",
            precision="bf16-mixed" if precision == "mixed" else precision,  # type: ignore[arg-type]
            attention=attention,  # type: ignore[arg-type]
            recompute=recompute,  # type: ignore[arg-type]
        )
        measured = trace(dims, setup, batch=batch, seq=seq)
        memory = training_memory(
            spec,
            seq,
            micro_batch=batch,
            precision=precision,
            recompute=recompute,
            attention=attention,
            kernels="eager",  # type: ignore[arg-type]
        )
        # a trace does not contain the workspaces of libraries
        ours = memory.peak_bytes - memory.parts_bytes["overhead"]
        errors.append(abs(ours / measured.peak_bytes - 1))
        rows.append(
            [
                name + "".join(f", {value} layers" for value in changes.values()),
                seq,
                batch,
                attention,
                recompute,
                precision,
                measured.peak_bytes,
                ours,
                f"{ours / measured.peak_bytes - 1:+.2%}",
                "yes" if errors[-1] <= TRACED_BOUND else "NO",
                memory.moment,
            ]
        )
    columns: list[Field[Any]] = [
        Field("model", "model"),
        Field("tokens", "tokens", "count"),
        Field("batch", "batch", "count"),
        Field("attention", "attention"),
        Field("recompute", "recompute"),
        Field("precision", "precision", spare=2),
        Field("traced", "traced", "gib"),
        Field("predicted", "predicted", "gib"),
        Field("error", "error", "number"),
        Field("within_3", "within 3%", spare=1),
        Field("peak_falls_in", "peak falls in", spare=3),
    ]
    line = (
        f"{sum(error <= TRACED_BOUND for error in errors)} of {len(errors)} within 3%, largest error {max(errors):.2%}"
    )
    return Block(
        headline="training memory: predictions, and steps of plain torch with AdamW that are traced on fake tensors",
        table=Table(columns=columns, rows=rows),
        lines=[line],
    )


def main() -> None:
    """Print the comparison."""
    show(traced())


def show(block: Block) -> None:
    """Print one table."""
    render(
        Document(command="memory_accuracy", inputs={}, rows_key="runs", rows=[], blocks=[block]), "table", sys.stdout
    )


if __name__ == "__main__":
    main()
