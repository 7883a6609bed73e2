"""Compare predicted training memory with published measurements and with traced steps.

    python benchmarks/memory_accuracy.py             # published runs; no torch needed
    python benchmarks/memory_accuracy.py --traced    # steps on fake tensors; needs torch, takes a minute

The script prints one row per run: the measured memory, the prediction and the error. No parameter is fitted to the
measurements. A run is described only by its layout and recipe, and all runs of a source have the same precision and
kernels.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import Any

from llmbench.report.document import Block, Document, Table
from llmbench.report.fields import Field
from llmbench.report.render import render
from llmbench.sizing.memory import Memory
from llmbench.sizing.training import training_memory
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Dense, Gated
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Layer, ModelSpec, Norm
from llmbench.spec.override import override
from llmbench.spec.position import LearnedPositions

BOUNDS = {"korthikanti": 0.02, "simumax": 0.05, "torchtitan": 0.10}
"""The largest error of a good prediction, as a share of the measured memory, by source."""

STACK = {"korthikanti": "fused", "simumax": "fused", "torchtitan": "eager"}
"""The kernels of the measured runs, by source: Megatron's fused kernels, or plain torch modules."""


def model_of(described: dict[str, Any]) -> ModelSpec:
    """Return the spec of a run's model: a GPT with the given widths and depth, or a bundled model with fewer layers."""
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
    """Return the predicted memory of a run."""
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
    """Return the bytes of `memory` that correspond to the run's published figure."""
    if run["quantity"] == "activations":
        return memory.full_bytes["activations"]
    # The source counts 12·L·h² parameters (L layers, hidden size h), divided equally among all stages.
    if run["quantity"] == "states":
        layout, sizes = Layout.parse(run["layout"]), run["model"]
        count = model_of(sizes)
        layers = training_memory(
            override(count, {"vocab_size": 1, "positions": {"kind": "none"}}),
            run["seq"],
            layout=layout,
            precision="mixed-fp32-grads",
        )
        return sum(layers.full_bytes[part] for part in ("weights", "gradients", "optimizer"))
    return memory.reserved_bytes if run["quantity"] == "reserved" else memory.peak_bytes


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


def summary(errors: dict[str, list[float]]) -> list[str]:
    """Return one line per source: the number of good predictions, and the mean and largest error."""
    return [
        f"{source}: {sum(abs(error) <= BOUNDS[source] for error in runs)} of {len(runs)} within {BOUNDS[source]:.0%}, "
        f"mean error {sum(map(abs, runs)) / len(runs):.1%}, largest {max(runs, key=abs):+.1%}"
        for source, runs in errors.items()
    ]


def main() -> None:
    """Print the comparison that the command line asks for."""
    if "--traced" in sys.argv[1:]:
        show(traced())
        return
    errors: dict[str, list[float]] = {}
    runs = tomllib.loads((Path(__file__).with_name("memory_published.toml")).read_text())["runs"]
    rows: list[list[Any]] = []
    for run in runs:
        memory = predict(run)
        ours, measured = figure(run, memory) / 2**30, run["gib"]
        error = ours / measured - 1
        bound = BOUNDS[run["source"]]
        errors.setdefault(run["source"], []).append(error)
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
    columns: list[Field[Any]] = [
        Field("run", "run"),
        Field("quantity", "quantity", spare=1),
        Field("layout", "layout", spare=3),
        Field("measured_gib", "measured (GiB)", "number"),
        Field("predicted_gib", "predicted (GiB)", "number"),
        Field("error", "error", "number"),
        Field("bound", "bound", "number", spare=2),
        Field("within", "within"),
        Field("peak_falls_in", "peak falls in", spare=4),
    ]
    show(
        Block(
            headline="training memory: published measurements and predictions",
            table=Table(columns=columns, rows=rows),
            lines=summary(errors),
        )
    )


def show(block: Block) -> None:
    """Print one table."""
    render(
        Document(command="memory_accuracy", inputs={}, rows_key="runs", rows=[], blocks=[block]), "table", sys.stdout
    )


if __name__ == "__main__":
    main()
