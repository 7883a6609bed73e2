"""Answers of `llmbench params`: the numbers of parameters of models, as rows and tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from msgspec.structs import replace

from llmbench.answers.about import MODEL_FIELDS, WEIGHTS_FROM, AboutModel, model_block, weights_line
from llmbench.report.document import Block, Document, Table, table
from llmbench.report.fields import Cell, Field, records
from llmbench.report.units import billions, change, fitting, size
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.params import COMPONENTS, ONE_TOKEN, Parameters, count_parameters, layer_group
from llmbench.sizing.stored_tensors import NEXT_TOKEN_PREDICTION
from llmbench.sizing.weight_recipe import WeightRecipe
from llmbench.sizing.weights import StoredWeights, stored_weights
from llmbench.spec.model import ModelSpec
from llmbench.spec.weights.on_hub import with_headers

ROWS = (*(component for component in COMPONENTS if component != "lm_head"), "lm_head")
"""The components in the order of the table rows: the order of COMPONENTS, but with `lm_head` last."""

By = Literal["component", "layer", "op"]
"""What one row of the table stands for."""


class Counted(AboutModel, kw_only=True):
    """A model, its numbers of parameters, and the bytes of its weights in files.

    recipe, stored: how the weights are stored, and their bytes. None: the format of the published files is not known.
    """

    parameters: Parameters
    recipe: WeightRecipe | None
    stored: StoredWeights | None

    @property
    def notes(self) -> list[str]:
        """The notes of the format that the user named, and of the model."""
        return [*([] if self.recipe is None else self.recipe.notes), *super().notes]


FIELDS: tuple[Field[Counted], ...] = (
    *MODEL_FIELDS,
    Field(
        "parameters.total",
        description="number of trained parameters. Shared parameters count once. Buffers and modules for multi-token "
        "prediction do not count",
    ),
    Field(
        "parameters.active",
        description="number of parameters that one token uses; an expert counts only if the token is routed to it",
    ),
    Field("parameters.active_no_embeddings", description="`active` without the embedding tables and the output head"),
    Field(
        "parameters.active_no_input_embedding",
        description="`active_no_embeddings` plus the output head: vocab × width, even if tied, and its bias",
    ),
    Field(
        "parameters.active_matmul", description="number of elements of the matrices that one token is multiplied with"
    ),
    Field(
        "components",
        value=lambda row: row.parameters.components,
        description="number of parameters of each of the fourteen components; the sum is `parameters.total`",
    ),
    Field(
        "layers",
        value=lambda row: {
            name: {"count": count, "parameters": row.parameters.layers.get(name, 0)}
            for name, count in _layer_counts(row.spec).items()
        },
        description="for each kind of layer: `count` (number of layers) and `parameters` (parameters of one layer)",
    ),
    Field(
        "persistent_buffers",
        value=lambda row: row.parameters.buffers,
        description="number of elements that are stored with the model but not trained, such as the score corrections "
        "of a router",
    ),
    Field(
        "next_token_prediction",
        value=lambda row: row.parameters.next_token_prediction,
        description="number of parameters of the modules for multi-token prediction",
    ),
    Field(
        "towers",
        value=lambda row: {tower.name: tower.parameters for tower in row.spec.towers},
        description="for each part for another modality than text, such as `vision_tower`: number of its elements, or "
        "null if it is not known. They are not part of `parameters.total`",
    ),
    Field(
        "published_parameters",
        value=lambda row: row.spec.published_parameters,
        description="number of parameters that the source of the spec publishes, or null",
    ),
    Field(
        "rule_12_l_d2",
        value=lambda row: row.parameters.rule_12_l_d2,
        description="number of parameters by the rule of thumb 12·L·d² (L layers, hidden size d)",
    ),
    Field(
        "bf16_bytes",
        value=lambda row: row.parameters.bf16_bytes,
        description="bytes of the weights in bf16: 2 × `parameters.total`",
    ),
    Field(
        "weights_format",
        value=lambda row: None if row.recipe is None else row.recipe.text,
        description="format of the weights in files, as `--weights` accepts it; null if it is not known",
    ),
    Field(
        "weights_from",
        value=lambda row: None if row.recipe is None else row.recipe.origin,
        description=WEIGHTS_FROM,
    ),
    Field(
        "stored_bytes",
        value=lambda row: None if row.stored is None else row.stored.total_bytes,
        description="bytes of all tensors in the files, with buffers and multi-token prediction, without the headers "
        "of the files; null if the format is not known",
    ),
    Field(
        "stored_components",
        value=lambda row: None if row.stored is None else row.stored.components,
        description="bytes of each component in the files, buffers included, of `next_token_prediction`, and of parts "
        "for other modalities such as `vision_tower`; from files also `other_tensors`, which belong to no op; the sum "
        "is `stored_bytes`",
    ),
    Field(
        "stored_approximate_because",
        value=lambda row: [] if row.stored is None else list(row.stored.doubts),
        description="reasons why `stored_bytes` may be inexact",
    ),
    Field(
        "stored_unknown_because",
        value=lambda row: row.spec.weights.unknown if row.stored is None else None,
        description="why `stored_bytes` is null; null if it is known",
    ),
)


def counted(specs: Iterable[ModelSpec], weights: str | None = None) -> list[Counted]:
    """Return the models with their numbers of parameters. weights: format of the weights (see `stored_weights`)."""
    rows = []
    for spec in specs if weights is not None else map(with_headers, specs):
        known = weights is not None or spec.weights.known
        recipe = WeightRecipe(spec, weights) if known else None
        stored = None if recipe is None else stored_weights(spec, weights, recipe=recipe)
        rows.append(Counted(spec=spec, parameters=count_parameters(spec), recipe=recipe, stored=stored))
    return rows


def document(
    rows: list[Counted], inputs: dict[str, Any], *, by: By = "component", explain: bool = False, tables: bool = True
) -> Document:
    """Return the answer for some models. `inputs`: the options. `tables`: whether people will read it."""
    return Document(
        command="params",
        inputs=inputs,
        rows_key="models",
        rows=records(FIELDS, rows),
        blocks=[_block(row, by, explain) for row in rows] if tables else [],
    )


def _layer_counts(spec: ModelSpec) -> dict[str, int]:
    counts: dict[str, int] = {}
    for prefix, order in (("", spec.order), ("encoder.", spec.encoder.order if spec.encoder else ())):
        for name in order:
            counts[prefix + name] = counts.get(prefix + name, 0) + 1
    return counts


def _block(row: Counted, by: str, explain: bool) -> Block:
    spec, counted = row.spec, row.parameters
    ops = [op for op in lower(spec, ONE_TOKEN) if op.parameters or op.buffers]
    tables = {"component": _by_component, "layer": _by_layer, "op": _by_op}
    lines = [*_stored(row), _summary(spec, counted)]
    if counted.active != counted.total:
        lines.append(
            f"active per token {counted.active:,} ({counted.active / counted.total:.1%}) · without embeddings "
            f"{counted.active_no_embeddings:,} · without input embedding {counted.active_no_input_embedding:,}"
        )
    apart = []
    if counted.buffers:
        apart.append(f"stored buffers {counted.buffers:,}")
    if counted.next_token_prediction:
        apart.append(f"multi-token prediction {counted.next_token_prediction:,}")
        stored = 0 if row.stored is None else row.stored.components.get(NEXT_TOKEN_PREDICTION, 0)
        apart[-1] += f" ({size(stored)} in files)" if stored else ""
    if apart:
        lines.append("not in the total: " + " · ".join(apart))
    shown = tables[by](row, ops, explain)
    if any(isinstance(cell, Cell) and cell.text != cell.value for cells in shown.rows for cell in cells):
        lines.append(f"… stands for tensors below {SMALL:.0%} of a component in a layer; --explain shows all")
    return model_block(row, table=shown, lines=lines)


def _stored(row: Counted) -> list[str]:
    """Return lines about the bytes of the weights in files."""
    if row.stored is None or row.recipe is None:
        return [f"bytes of the weights not known: {row.spec.weights.unknown}"]
    lines = [f"weights in files {size(row.stored.total_bytes)} · {weights_line(row.recipe)}"]
    parts = [f"{tower.name} {tower.parameters:,}" for tower in row.spec.towers if tower.parameters is not None]
    if row.recipe.files is not None:
        others = row.recipe.files.others.items()
        named = [f"{name} {size(count)}" for name, count in others if name != NEXT_TOKEN_PREDICTION]
        lines += [f"in the files beside the model: {' · '.join(named)}"] if named else []
        lines += [f"other_tensors: {row.recipe.files.named}"] if row.recipe.files.named else []
        said, have = row.recipe.files.said_by_index, row.recipe.files.found.total_bytes
        lines += [f"the index says {said:,} bytes in total, but the files have {have:,}"] if said is not None else []
    elif parts:
        lines.append(f"only in these bytes: {' · '.join(parts)} parameters")
    return lines + [f"approximate bytes: {doubt}" for doubt in row.stored.doubts]


def _summary(spec: ModelSpec, counted: Parameters) -> str:
    parts = [
        f"rule of thumb 12·L·d² = {billions(counted.rule_12_l_d2)} ({change(counted.rule_12_l_d2, counted.total)})",
    ]
    published = spec.published_parameters
    if published is not None:
        difference = change(published, counted.total)
        parts.append(
            "equal to the published total"
            if published == counted.total
            else f"published {billions(published)} ({difference})"
        )
    return " · ".join(parts)


LONG = 90
"""The largest length of a formula that a table shows whole without `--explain`, in characters."""
SMALL = 0.01
"""The share of a component's weights in a layer below which a long formula leaves out a tensor."""


def _formula(spec: ModelSpec, ops: list[Op], explain: bool, *, short: bool = False) -> str:
    """Return the formula of a component: weights in one layer of each kind, plus weights that exist only once.

    `short`: leave the small tensors out of a long formula.
    """
    texts: dict[str, list[str]] = {}
    counts = _layer_counts(spec)
    once = [op for op in ops if _exists_once(op, counts)]
    for group, chosen in _groups([op for op in ops if not _exists_once(op, counts)]).items():
        texts.setdefault(_sum(spec, chosen, explain, short=short), []).append(group)
    named = {text: groups for text, groups in texts.items() if text}
    if explain:  # without it, a column or the heading says that the formula is that of one layer
        layers = {text: sum(counts[group] for group in groups) for text, groups in named.items()}
        where = {text: f"each of {count} layers" if count > 1 else "one layer" for text, count in layers.items()}
        named = {f"{text} in {where[text]}": groups for text, groups in named.items()}
    inside = "; ".join(f"{', '.join(groups)}: {text}" if len(texts) > 1 else text for text, groups in named.items())
    outside = " + ".join(filter(None, (_sum(spec, chosen, explain, short=short) for chosen in _by_stack(spec, once))))
    if texts and outside:
        return f"{inside}, + {outside} once" if inside else f"{outside} once"
    return inside + outside


def _exists_once(op: Op, layer_counts: Mapping[str, int]) -> bool:
    """Return whether the weights of an op exist only once: outside the layers, or shared by several layers."""
    return not op.layer or op.count < layer_counts[layer_group(op)]


def _groups(ops: list[Op]) -> dict[str, list[Op]]:
    """Return the ops of each kind of layer."""
    groups: dict[str, list[Op]] = {}
    for op in ops:
        groups.setdefault(layer_group(op), []).append(op)
    return groups


def _by_stack(spec: ModelSpec, ops: list[Op]) -> list[list[Op]]:
    """Group the ops by stack (encoder or decoder) if the formulas of the stacks have different numbers.

    Return all ops as one group if each name in the formulas, such as `hidden`, has the same value in both stacks.
    """
    from llmbench.sizing.formula import values_of  # imported here, because JSON has no formulas

    stacks: dict[str, list[Op]] = {}
    for op in ops:
        stacks.setdefault(op.stack, []).append(op)
    values_of_names: dict[str, set[int]] = {}
    for op in ops:
        for name, value in values_of(op, spec).items():
            if name in op.formula:
                values_of_names.setdefault(name, set()).add(value)
    return [ops] if all(len(values) == 1 for values in values_of_names.values()) else list(stacks.values())


def _sum(spec: ModelSpec, ops: list[Op], explain: bool, *, short: bool = False) -> str:
    """Return one formula for the weights of these ops.

    A weight whose size is only a number, not a field of the spec, is shown as an ellipsis (…). The formula is empty if
    all weights are of this type. With `short`, an ellipsis also stands for the small tensors of a long formula.
    """
    from llmbench.sizing.formula import simplify, values_of, with_numbers

    named = [op for op in ops if any(map(str.isalpha, op.formula))]
    if not named:
        return ""
    layers = spec.encoder.layers if named[0].stack == "encoder" and spec.encoder else spec.layers
    text = simplify([op.formula for op in named], layers.get(named[0].layer), spec)
    if short and len(text) > LONG:
        least = SMALL * sum(op.parameters for op in ops)
        named = [op for op in named if op.parameters >= least]
        text = simplify([op.formula for op in named], layers.get(named[0].layer), spec)
    if explain:
        values: dict[str, int] = {}
        for op in named:
            values |= values_of(op, spec)
        numbers, total = with_numbers(text, values), f"{sum(op.parameters for op in named):,}"
        text = f"{text} = {total}" if numbers.isdigit() else f"{text} = {numbers} = {total}"
    return text if len(named) == len(ops) else f"{text} + …"


LAYER_COLUMNS: tuple[Field[Any], ...] = (
    Field("parameters", "parameters", "count"),
    Field("share", "share", "percent"),
    Field("parameters_per_layer", "in one layer", "count", spare=1),
)


def _by_component(about: Counted, ops: list[Op], explain: bool) -> Table:
    spec, counted = about.spec, about.parameters
    rows: list[dict[str, Any]] = []
    counts = _layer_counts(spec)
    for component in ROWS:
        chosen = [op for op in ops if op.component == component and op.parameters]
        if not chosen:
            continue
        repeated = [op for op in chosen if not _exists_once(op, counts)]
        inside = _groups(repeated)
        sums = {sum(op.parameters for op in group) for group in inside.values()}
        total = counted.components[component]
        row: dict[str, Any] = {"component": component, "formula": _formula(spec, chosen, explain)}
        row["shown"] = row["formula"] if explain else _formula(spec, chosen, explain, short=True)
        if repeated:
            row["layers"] = len({(op.stack, layer) for op in repeated for layer in op.layers})
        if len(sums) == 1:
            row["parameters_per_layer"] = sums.pop()
        if about.stored is not None:
            row["stored_bytes"] = about.stored.components[component]
        rows.append(row | {"parameters": total, "share": total / counted.total})
    last: dict[str, Any] = {"component": "total", "parameters": counted.total, "share": 1.0}
    sizes = [row["stored_bytes"] for row in rows if "stored_bytes" in row]
    quantised = about.recipe is not None and about.recipe.quantises  # else all components have the same bits
    # The bytes in a format that the user asked for matter more than a formula.
    asked = quantised and about.recipe is not None and about.recipe.origin == "--weights"
    if sizes:
        last["stored_bytes"] = sum(sizes)
    same = len({row["layers"] for row in rows if "layers" in row}) < 2
    parameters, share, in_one_layer = LAYER_COLUMNS
    columns: tuple[Field[Any], ...] = (
        Field("component", "component"),
        parameters,
        share,
        Field("layers", None if same else "layers", "count"),
        Field("stored_bytes", "in files" if quantised else None, fitting("gib", [sum(sizes)]), spare=0 if asked else 1),
        replace(in_one_layer, spare=2),
        Field(
            "formula",
            "formula" if explain else "formula (one layer)",
            text=lambda row: row.get("shown"),
            wraps=True,
            spare=1 if asked and not explain else 0,
        ),
    )
    return table(columns, rows, total=last)


def _by_layer(about: Counted, ops: list[Op], explain: bool) -> Table:
    spec, counted = about.spec, about.parameters
    rows: list[dict[str, Any]] = []
    counts = _layer_counts(spec)
    for name, parameters in counted.layers.items():
        total = parameters * counts[name]
        row = {"layers": name, "count": counts[name], "parameters_per_layer": parameters}
        rows.append(row | {"parameters": total, "share": total / counted.total})
    rest = counted.total - sum(row["parameters"] for row in rows)
    rows.append({"layers": "outside layers", "parameters": rest, "share": rest / counted.total})
    columns: tuple[Field[Any], ...] = (
        Field("layers", "layers"),
        Field("count", "count", "count"),
        *LAYER_COLUMNS,
    )
    last = {"layers": "total", "count": sum(counts.values()), "parameters": counted.total, "share": 1.0}
    return table(columns, rows, total=last)


def _by_op(about: Counted, ops: list[Op], explain: bool) -> Table:
    spec, counted = about.spec, about.parameters
    from llmbench.sizing.formula import values_of, with_numbers

    rows: list[dict[str, Any]] = []
    for op in ops:
        if op.parameters:
            formula = op.formula
            if explain and any(map(str.isalpha, formula)):
                formula += f" = {with_numbers(formula, values_of(op, spec))}"
            row = {"op": op.name, "layers": layer_group(op), "count": op.count, "formula": formula}
            rows.append(row | {"parameters_each": op.parameters, "parameters": op.count * op.parameters})
    one_kind = len({row["layers"] for row in rows if row["layers"]}) < 2
    columns: tuple[Field[Any], ...] = (
        Field("op", "op", wraps=True),
        Field("parameters", "parameters", "count"),
        Field("count", "count", "count"),
        Field("parameters_each", "in one op", "count", spare=1),
        Field("layers", None if one_kind else "layers", spare=2),
        Field("formula", "formula", wraps=True, spare=0 if explain else 3),
    )
    return table(columns, rows, total={"op": "total", "parameters": counted.total})
