"""Answers of `llmbench compare`: several models in one table, with a column for each model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from llmbench.answers.about import MODEL_FIELDS, encoder_notes, length_notes
from llmbench.answers.compare_row import FIELDS, Compared
from llmbench.report.describe import distinct
from llmbench.report.document import Block, Document, Table, table, transposed
from llmbench.report.fields import Field, fitted, records
from llmbench.report.units import change, plural, size
from llmbench.sizing.flops import count_flops
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.memory import inference_memory
from llmbench.sizing.params import count_parameters
from llmbench.sizing.stored_tensors import NEXT_TOKEN_PREDICTION
from llmbench.sizing.training import training_memory
from llmbench.sizing.weights import stored_weights
from llmbench.sizing.workload import Workload
from llmbench.spec.model import ModelSpec
from llmbench.spec.weights.on_hub import with_headers

EVERY_MODEL = "--set changed every model; `--vs --set KEY=VALUE` compares a model with its variant"
"""The note of a table in which `--set` changed every model."""
ABSORBED = (
    "latent attention (MLA) decodes in its absorbed form: it has more FLOPs and reads fewer bytes, because it does not "
    "expand the latents"
)
"""The note of a table with latent attention."""

IMPORTANT = (
    "changes",
    "parameters",
    "active_parameters",
    "kv_bytes_per_token",
    "cache_bytes_per_sequence",
    "inference_memory_bytes",
    "prefill_flops_per_token",
    "kv_bytes_per_token_beyond_windows",
    "attention",
    "layers",
    "hidden_size",
    "context",
)
"""The most important fields for a terminal that is too narrow for a column per model, in their order."""


def compared(spec: ModelSpec, seq: int, weights: str | None, changes: tuple[str, ...] = ()) -> Compared:
    """Return a model with its figures for sequences of `seq` tokens.

    weights: format of the weights in inference. None: that of the published files. changes: the values of `--set` that
    changed the model.

    Raises LLMBenchError for a format that is not valid.
    """
    spec = spec if weights is not None else with_headers(spec)
    known = weights is not None or spec.weights.known
    stored = stored_weights(spec, weights) if known else None
    training = training_memory(spec, seq)
    return Compared(
        spec=spec,
        doubts=(
            *(f"bytes of the weights: {doubt}" for doubt in (stored.doubts if stored is not None else ())),
            *(f"memory in training: {doubt}" for doubt in training.approximate),
        ),
        tokens=seq,
        changes=changes,
        parameters=count_parameters(spec),
        stored=stored,
        cache=kv_cache(spec, seq),
        inference=inference_memory(spec, seq, weights=weights) if known else None,
        training=training,
        prefill_flops_per_token=count_flops(spec, Workload.prefill(seq)).per_token,
        decode_flops_per_token=count_flops(spec, Workload.decode(seq)).per_token if spec.decodes else None,
    )


def document(rows: list[Compared], inputs: dict[str, Any], seq: int, *, mark: bool, tables: bool = True) -> Document:
    """Return the answer for some models. `inputs`: the options. `tables`: whether people will read it.

    `seq`: tokens per sequence. `mark`: whether a column marks the rows in which the models differ.
    """
    return Document(
        command="compare",
        version=2,
        inputs=inputs,
        rows_key="models",
        rows=records(FIELDS, rows),
        blocks=[_block(rows, seq, mark=mark)] if tables else [],
        tables=[table(FIELDS, rows)] if tables else [],
    )


def _block(rows: list[Compared], seq: int, *, mark: bool) -> Block:
    """Return a table with a column for each model. A field that is "no" or "none" for every model is left out."""
    fields = [
        field
        for field in fitted(FIELDS, rows)
        if field.heading is not None and any(field.shown(row) not in ("none", "no") for row in rows)
    ]
    if all(row.cache.bytes_per_token_beyond_windows == row.cache.bytes_per_token for row in rows):
        fields = [field for field in fields if field.name != "kv_bytes_per_token_beyond_windows"]
    names = _names(rows)
    if names != [row.title for row in rows]:  # the names have the changes
        fields = [field for field in fields if field.name != "changes"]
    models = transposed(fields, list(zip(names, rows, strict=True)))
    if mark:
        models = _marked(models, fields, rows)
    else:
        models.narrow = _narrow(fields, rows)
    return Block(
        answer=_same(names, rows),
        headline=f"FLOPs, cache and memory at {plural(seq, 'token')} · cache in bf16 · inference in the weight format "
        "· training in mixed precision",
        table=models,
        lines=_noted(rows, names, lambda row: [f"is approximate: {reason}" for reason in row.approximate_because], " "),
        notes=[
            *([] if mark or not rows[0].changes else [EVERY_MODEL]),
            *([ABSORBED] if any(mixer.absorbs for row in rows for mixer in row.spec.mixers) else []),
            *distinct(note for row in rows for note in length_notes(row.spec, seq)),
            *distinct(note for row in rows for note in encoder_notes(row.spec, seq)),
            *_noted(rows, names, _not_loaded),
            *_noted(rows, names, lambda row: row.spec.notes),
        ],
    )


def _names(rows: list[Compared]) -> list[str]:
    """Return the heading of each model. If two models have one name, the headings have the changes, or a number."""
    titles = [row.title for row in rows]
    if len(set(titles)) < len(titles):
        titles = [" · ".join([row.title, *row.changes]) for row in rows]
    return [
        title if titles.count(title) == 1 else f"{title} ({1 + titles[:place].count(title)})"
        for place, title in enumerate(titles)
    ]


def _same(names: list[str], rows: list[Compared]) -> str:
    """Return a sentence for each model that differs from an earlier one in no field, or an empty text."""
    fields = [field for field in FIELDS if field.name not in ("model", "changes", "notes")]
    shown = [[(field.value_of(row), field.shown(row)) for field in fields] for row in rows]
    return " ".join(
        f"{names[shown.index(figures)]} and {name} do not differ in any row."
        for place, (name, figures) in enumerate(zip(names, shown, strict=True))
        if shown.index(figures) < place
    )


def _noted(
    rows: Sequence[Compared],
    names: Sequence[str],
    texts_of: Callable[[Compared], Sequence[str]],
    between: str = ": ",
) -> list[str]:
    """Return the texts about each model, behind its name. A text on a model and all of its variants has the model's
    name. Another text has the heading of the column."""
    texts = [texts_of(row) for row in rows]
    shared: dict[str, set[str]] = {}
    for row, found in zip(rows, texts, strict=True):
        shared[row.spec.name] = shared.get(row.spec.name, set(found)).intersection(found)
    noted = []
    for row, name, found in zip(rows, names, texts, strict=True):
        model = row.spec.name
        noted += [f"{model if text in shared[model] else name}{between}{text}" for text in found]
    return distinct(noted)


def _not_loaded(row: Compared) -> list[str]:
    """Return a note if the files have weights that inference does not load."""
    stored = 0 if row.stored is None else row.stored.components.get(NEXT_TOKEN_PREDICTION, 0)
    return [f"{size(stored)} of the files are multi-token prediction, which inference does not load"] if stored else []


def _marked(models: Table, fields: Sequence[Field[Compared]], rows: list[Compared]) -> Table:
    """Return the table with a last column that marks each row in which the models differ.

    With two models, the mark of a number is the relative difference.
    """

    def mark(field: Field[Compared]) -> str:
        values = [field.value_of(row) for row in rows]
        if all(
            (value, field.shown(row)) == (values[0], field.shown(rows[0]))
            for value, row in zip(values, rows, strict=True)
        ):
            return ""
        numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
        return change(numbers[1], numbers[0]) if len(values) == len(numbers) == 2 and numbers[0] else "differs"

    marks = [mark(field) for field in fields]
    return Table(
        columns=[*models.columns, Field("difference", "difference")],
        rows=[[*row, text] for row, text in zip(models.rows, marks, strict=True)],
    )


def _narrow(fields: Sequence[Field[Compared]], rows: list[Compared]) -> Table:
    """Return a table with a row for each model. A narrow terminal leaves out the least important fields."""

    def rank(field: Field[Compared]) -> int:
        return IMPORTANT.index(field.name) if field.name in IMPORTANT else len(IMPORTANT)

    columns = [
        msgspec.structs.replace(field, spare=place, wraps=field.unit == "text")
        for place, field in enumerate(sorted(fields, key=rank))
    ]
    names = {id(row): name for row, name in zip(rows, _names(rows), strict=True)}
    return table([msgspec.structs.replace(MODEL_FIELDS[0], text=lambda row: names[id(row)]), *columns], rows)
