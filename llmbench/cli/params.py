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

ROWS = (*(component for component in COMPONENTS if component != "lm_head"), "lm_head")
"""Components in the order of a model: the head is last."""

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
        difference = change(published, counted.total)
        parts.append(
            "as published" if published == counted.total else f"published {billions(published)} ({difference})"
        )
    return " · ".join(parts)


def _formula(spec: ModelSpec, ops: list[Op], explain: bool) -> str:
    """What a component is: one layer's share for each kind of layer that has another, and what stands once."""
    texts: dict[str, list[str]] = {}
    once = [op for op in ops if _stands_once(op, spec)]
    for group, chosen in _groups([op for op in ops if op not in once]).items():
        texts.setdefault(_sum(spec, chosen, explain), []).append(group)
    named = {text: groups for text, groups in texts.items() if text}
    inside = "; ".join(f"{', '.join(groups)}: {text}" if len(texts) > 1 else text for text, groups in named.items())
    outside = " + ".join(filter(None, (_sum(spec, chosen, explain) for chosen in _alike(spec, once))))
    if texts and outside:
        return f"{inside}, + {outside} once" if inside else f"{outside} once"
    return inside + outside


def _stands_once(op: Op, spec: ModelSpec) -> bool:
    """Whether an op is outside the layers, or in one of them for all of its kind (T5's table, shared weights)."""
    return not op.layer or op.count < _layer_counts(spec)[layer_group(op)]


def _groups(ops: list[Op]) -> dict[str, list[Op]]:
    """Ops by kind of layer."""
    groups: dict[str, list[Op]] = {}
    for op in ops:
        groups.setdefault(layer_group(op), []).append(op)
    return groups


def _alike(spec: ModelSpec, ops: list[Op]) -> list[list[Op]]:
    """Ops of several stacks together where their names stand for the same numbers, else apart."""
    from llmbench.sizing.formula import values_of  # JSON does without

    stacks: dict[str, list[Op]] = {}
    for op in ops:
        stacks.setdefault(op.stack, []).append(op)
    meant: dict[str, set[int]] = {}
    for op in ops:
        for name, value in values_of(op, spec).items():
            if name in op.formula:
                meant.setdefault(name, set()).add(value)
    return [ops] if all(len(values) == 1 for values in meant.values()) else list(stacks.values())


def _sum(spec: ModelSpec, ops: list[Op], explain: bool) -> str:
    """One formula for what ops hold. Weights that a spec knows by their shape only have no names to show: an ellipsis
    stands for them beside others, and nothing alone."""
    from llmbench.sizing.formula import simplify, values_of, with_numbers

    named = [op for op in ops if any(map(str.isalpha, op.formula))]
    if not named:
        return ""
    layers = spec.encoder.layers if named[0].stack == "encoder" and spec.encoder else spec.layers
    text = simplify([op.formula for op in named], layers.get(named[0].layer), spec)
    if explain:
        values: dict[str, int] = {}
        for op in named:
            values |= values_of(op, spec)
        numbers, total = with_numbers(text, values), f"{sum(op.parameters for op in named):,}"
        text = f"{text} = {total}" if numbers.isdigit() else f"{text} = {numbers} = {total}"
    return text if len(named) == len(ops) else f"{text} + …"


def _by_component(spec: ModelSpec, ops: list[Op], counted: Parameters, explain: bool) -> Table:
    rows: list[list[Any]] = []
    for component in ROWS:
        chosen = [op for op in ops if op.component == component and op.parameters]
        if not chosen:
            continue
        inside = _groups([op for op in chosen if not _stands_once(op, spec)])
        each = {sum(op.parameters for op in group) for group in inside.values()}
        total = counted.components[component]
        per_layer = each.pop() if len(each) == 1 else ""
        rows.append([component, _formula(spec, chosen, explain), per_layer, total, total / counted.total])
    rows.append(["total", "", "", counted.total, 1.0])
    columns = [
        Column("component", name=True),
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
        Column("layers", name=True),
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
        if explain and any(map(str.isalpha, formula)):
            formula += f" = {with_numbers(formula, values_of(op, spec))}"
        rows.append([f"{op.name}", layer_group(op), op.count, formula, op.parameters, op.count * op.parameters])
    rows.append(["total", "", "", "", "", counted.total])
    columns = [
        Column("op", wraps=True),
        Column("layers", name=True),
        Column("count", "count"),
        Column("formula", wraps=True),
        Column("each", "count"),
        Column("model", "count"),
    ]
    if len({row[1] for row in rows if row[1]}) < 2:  # one kind of layer says nothing
        columns.pop(1)
        rows = [[row[0], *row[2:]] for row in rows]
    return Table(columns=columns, rows=rows, total=True)
