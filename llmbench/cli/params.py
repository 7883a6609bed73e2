"""`llmbench params`: how many parameters, where, and how many a token uses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from llmbench.cli.options import As, Explain, Models, Output, Set, answer, approximate_lines, load, title
from llmbench.report.describe import headline
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import billions, change, size
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.params import COMPONENTS, ONE_TOKEN, Parameters, count_parameters, layer_group
from llmbench.spec.model import ModelSpec

By = Annotated[Literal["component", "layer", "op"], typer.Option("--by", help="What a row of the table is.")]


def command(
    models: Models,
    by: By = "component",
    explain: Explain = False,
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """How many parameters, exactly, and where.

    By component, by kind of layer or by op; with what a token uses of them, and what is stored apart.

    Examples:

      llmbench params llama2-7b

      llmbench params deepseek-v3 mixtral-8x7b --format markdown

      llmbench params llama3-8b --by op --explain

      llmbench params llama2-7b --set num_key_value_heads=8

      llmbench params path/to/config.json --format json
    """
    specs = [load(text, set) for text in models]
    counts = [count_parameters(spec) for spec in specs]
    document = Document(
        command="params",
        inputs={"models": models, "set": set or []},
        rows_key="models",
        rows=[_row(spec, counted) for spec, counted in zip(specs, counts, strict=True)],
        blocks=[],
    )
    if format != "json":
        for spec, counted in zip(specs, counts, strict=True):
            document.blocks.append(_block(spec, counted, by, explain))
    answer(document, format, output)


def _row(spec: ModelSpec, counted: Parameters) -> dict[str, Any]:
    return {
        "model": spec.name,
        "approximate": bool(spec.approximate),
        "approximate_because": list(spec.approximate),
        "notes": list(spec.notes),
        "parameters": {
            "total": counted.total,
            "active": counted.active,
            "active_no_embeddings": counted.active_no_embeddings,
            "active_no_input_embedding": counted.active_no_input_embedding,
            "active_matmul": counted.active_matmul,
        },
        "components": counted.components,
        "layers": {
            name: {"count": count, "parameters": counted.layers.get(name, 0)}
            for name, count in _layer_counts(spec).items()
        },
        "persistent_buffers": counted.buffers,
        "next_token_prediction": counted.next_token_prediction,
        "published_parameters": spec.published_parameters,
        "rule_12_l_d2": counted.rule_12_l_d2,
        "bf16_bytes": 2 * counted.total,
    }


def _layer_counts(spec: ModelSpec) -> dict[str, int]:
    counts: dict[str, int] = {}
    for prefix, order in (("", spec.order), ("encoder.", spec.encoder.order if spec.encoder else ())):
        for name in order:
            counts[prefix + name] = counts.get(prefix + name, 0) + 1
    return counts


def _block(spec: ModelSpec, counted: Parameters, by: str, explain: bool) -> Block:
    ops = [op for op in lower(spec, ONE_TOKEN) if op.parameters or op.buffers]
    table = {"component": _by_component, "layer": _by_layer, "op": _by_op}[by](spec, ops, counted, explain)
    lines = [_summary(spec, counted)]
    if counted.active != counted.total:
        lines.append(
            f"active a token {counted.active:,} ({counted.active / counted.total:.1%}) · without embeddings "
            f"{counted.active_no_embeddings:,} · without input embedding {counted.active_no_input_embedding:,}"
        )
    apart = []
    if counted.buffers:
        apart.append(f"stored buffers {counted.buffers:,}")
    if counted.next_token_prediction:
        apart.append(f"multi-token prediction {counted.next_token_prediction:,}")
    if apart:
        lines.append("apart from the total: " + " · ".join(apart))
    return Block(headline=headline(spec), subject=title(spec), table=table, lines=lines + approximate_lines(spec))


def _summary(spec: ModelSpec, counted: Parameters) -> str:
    parts = [
        f"bf16 weights {size(2 * counted.total)}",
        f"rule of thumb 12·L·d² = {billions(counted.rule_12_l_d2)} ({change(counted.rule_12_l_d2, counted.total)})",
    ]
    published = spec.published_parameters
    if published is not None:
        parts.append("as published" if published == counted.total else f"published {billions(published)}")
    return " · ".join(parts)


def _formula(spec: ModelSpec, ops: list[Op], explain: bool) -> str:
    """What one layer's share of a component is; kinds of layers that differ stand beside each other, what stands
    outside layers is added at the end."""
    from llmbench.sizing.formula import simplify, values_of, with_numbers  # JSON does without

    texts: list[str] = []
    once = ""
    for group in dict.fromkeys(layer_group(op) for op in ops if op.formula):
        chosen = [op for op in ops if layer_group(op) == group and op.formula]
        layers = spec.encoder.layers if chosen[0].stack == "encoder" and spec.encoder else spec.layers
        text = simplify([op.formula for op in chosen], layers.get(chosen[0].layer), spec)
        if explain:
            values: dict[str, int] = {}
            for op in chosen:
                values |= values_of(op, spec)
            total = sum(op.parameters for op in chosen)
            text = f"{text} = {with_numbers(text, values)} = {total:,}"
        if group:
            texts.append(text)
        else:
            once = text
    inside = "; ".join(dict.fromkeys(texts))
    return f"{inside}, + {once}" if inside and once else inside + once


def _by_component(spec: ModelSpec, ops: list[Op], counted: Parameters, explain: bool) -> Table:
    rows: list[list[Any]] = []
    for component in COMPONENTS:
        chosen = [op for op in ops if op.component == component and op.parameters]
        if not chosen:
            continue
        inside = [op for op in chosen if op.layer]
        groups = {layer_group(op) for op in inside}
        per_layer = sum(op.parameters for op in inside) if len(groups) == 1 else None
        total = counted.components[component]
        rows.append([component, _formula(spec, chosen, explain), per_layer, total, total / counted.total])
    rows.append(["total", "", "", counted.total, 1.0])
    columns = [
        Column("component"),
        Column("formula (a layer)" if not explain else "formula", wraps=True),
        Column("per layer", "count"),
        Column("model", "count"),
        Column("share", "percent"),
    ]
    return Table(columns=columns, rows=rows, total=True)


def _by_layer(spec: ModelSpec, ops: list[Op], counted: Parameters, explain: bool) -> Table:
    rows: list[list[Any]] = []
    counts = _layer_counts(spec)
    for name, each in counted.layers.items():
        total = each * counts[name]
        rows.append([name, counts[name], each, total, total / counted.total])
    rest = counted.total - sum(row[3] for row in rows)
    rows.append(["outside layers", "", "", rest, rest / counted.total])
    rows.append(["total", sum(counts.values()), "", counted.total, 1.0])
    columns = [
        Column("layers"),
        Column("count", "count"),
        Column("per layer", "count"),
        Column("model", "count"),
        Column("share", "percent"),
    ]
    return Table(columns=columns, rows=rows, total=True)


def _by_op(spec: ModelSpec, ops: list[Op], counted: Parameters, explain: bool) -> Table:
    from llmbench.sizing.formula import values_of, with_numbers

    rows: list[list[Any]] = []
    for op in ops:
        if not op.parameters:
            continue
        formula = op.formula
        if explain:
            formula += f" = {with_numbers(formula, values_of(op, spec))}"
        rows.append([f"{op.name}", op.layer, op.count, formula, op.parameters, op.count * op.parameters])
    rows.append(["total", "", "", "", "", counted.total])
    columns = [
        Column("op", wraps=True),
        Column("layer"),
        Column("count", "count"),
        Column("formula", wraps=True),
        Column("each", "count"),
        Column("model", "count"),
    ]
    return Table(columns=columns, rows=rows, total=True)
