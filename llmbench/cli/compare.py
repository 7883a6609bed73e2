"""`llmbench compare`: show several models in one table, with a column for each model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated

import msgspec
import typer

from llmbench.answers.about import MODEL_FIELDS, AboutModel, encoder_notes, length_notes
from llmbench.cli.options import SEQ, As, Models, Output, Seq, Set, WeightsOption, answer, load, prints_tables, reading
from llmbench.cli.versus import VersusCommand, sides
from llmbench.report.describe import distinct
from llmbench.report.document import Block, Document, Table, table, transposed
from llmbench.report.fields import Field, fitted, records
from llmbench.report.units import change, plural, size
from llmbench.sizing.flops import count_flops
from llmbench.sizing.kvcache import KVCache, kv_cache
from llmbench.sizing.memory import Memory, inference_memory
from llmbench.sizing.params import Parameters, count_parameters
from llmbench.sizing.stored_tensors import NEXT_TOKEN_PREDICTION
from llmbench.sizing.training import training_memory
from llmbench.sizing.weights import StoredWeights, stored_weights
from llmbench.sizing.workload import Workload
from llmbench.spec.ffn import FFN, activation_name
from llmbench.spec.mixer import AttentionKind, branches
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.weights.on_hub import with_headers


class Compared(AboutModel, kw_only=True):
    """A model with its parameters, KV cache, memory and FLOPs per token.

    `changes`: the values of `--set` that changed the model. `inference`, `training`: the memory of one GPU.
    `decode_flops_per_token` is None if the model has no decoder. `stored` and `inference` are None if the format of the
    published files is not known.
    """

    changes: tuple[str, ...]
    parameters: Parameters
    stored: StoredWeights | None
    cache: KVCache
    inference: Memory | None
    training: Memory
    prefill_flops_per_token: float
    decode_flops_per_token: float | None

    @property
    def layers(self) -> list[Layer]:
        """One layer of each kind in the decoder."""
        return list(self.spec.layers.values())

    @property
    def ffns(self) -> list[FFN]:
        """The feed-forwards of `layers`. A layer without a feed-forward adds nothing."""
        return [layer.ffn for layer in self.layers if layer.ffn is not None]


def _texts(name: str, heading: str, texts: Callable[[Compared], Iterable[str]], description: str) -> Field[Compared]:
    """Return a field whose value is a list: one text per kind of layer, without repetitions."""
    return Field(
        name,
        heading,
        value=lambda row: _once(texts(row)),
        text=lambda row: _joined(texts(row)),
        description=description,
    )


FIELDS: tuple[Field[Compared], ...] = (
    *(msgspec.structs.replace(field, heading=None) for field in MODEL_FIELDS),
    Field(
        "changes",
        "changes",
        value=lambda row: list(row.changes),
        text=lambda row: ", ".join(row.changes) or "none",
        description="values of `--set` that changed the model",
    ),
    Field(
        "parameters",
        "parameters",
        "parameters",
        lambda row: row.parameters.total,
        description="number of trained parameters",
    ),
    Field(
        "active_parameters",
        "active parameters",
        "parameters",
        lambda row: row.parameters.active,
        description="number of trained parameters that one token uses",
    ),
    Field(
        "weights_bytes",
        "weights in files",
        "gib",
        lambda row: None if row.stored is None else row.stored.total_bytes,
        description="the same figure as `stored_bytes` of `params`: bytes of the weights in files",
    ),
    Field(
        "weights_format",
        "weight format",
        value=lambda row: None if row.stored is None else row.stored.format,
        description="format of the weights, as `--weights` accepts it; null if it is not known",
    ),
    _texts(
        "positions",
        "positions",
        lambda row: (row.spec.positions_of(mixer).summary for mixer in row.spec.attentions),
        "position encodings of the attention layers",
    ),
    Field("norm", "norm", value=lambda row: _norm(row.spec), description="kind of norm"),
    _texts(
        "norm_placement",
        "norm placement",
        lambda row: (layer.placement.replace("_", " ") for layer in row.layers),
        "placement of the norms in a layer: `pre`, `post`, `output`, `sandwich`, `parallel`, …",
    ),
    Field(
        "parallel_block",
        "parallel block",
        value=lambda row: any(layer.placement.startswith("parallel") for layer in row.layers),
        description="whether the attention and the feed-forward of a layer run in parallel",
    ),
    _texts(
        "attention",
        "attention",
        lambda row: (layer.mixer.summary for layer in row.layers if layer.mixer is not None),
        "kinds of attention or recurrence, with their numbers of heads",
    ),
    Field(
        "head_dim",
        "head dim",
        value=lambda row: _numbers(mixer.key_dim for mixer in row.spec.attentions),
        text=lambda row: _joined(map(_heads, row.spec.attentions)),
        description="head dimension of queries and keys",
    ),
    Field(
        "v_head_dim",
        value=lambda row: _numbers(mixer.value_dim for mixer in row.spec.attentions),
        description="head dimension of values",
    ),
    Field(
        "window",
        "window",
        value=lambda row: _numbers(mixer.sliding_window for mixer in row.spec.attentions),
        text=lambda row: _joined(map(_window, row.spec.attentions)),
        description="size of the sliding window: number of tokens that a query can see, including the query's own "
        "token",
    ),
    Field(
        "attention_chunk_size",
        value=lambda row: _numbers(mixer.attention_chunk_size for mixer in row.spec.attentions),
        description="tokens per chunk in chunked attention, where a query sees only the keys of its own chunk",
    ),
    _texts(
        "qk_norm",
        "QK norm",
        lambda row: (mixer.qk_norm.over if mixer.qk_norm else "none" for mixer in row.spec.attentions),
        "norm of queries and keys. `head`: over each head, with weights that all heads share. `per_head`: over each "
        "head, with different weights per head. `full`: over all heads together",
    ),
    Field(
        "biases", "biases", value=lambda row: _biases(row.layers), description="names of the projections with a bias"
    ),
    _texts(
        "feed_forward",
        "feed-forward",
        lambda row: (ffn.summary for ffn in row.ffns),
        "kind and intermediate size of each feed-forward",
    ),
    _texts(
        "activation",
        "activation",
        lambda row: (activation_name(ffn.activation) for ffn in row.ffns),
        "activation function of each feed-forward",
    ),
    Field(
        "moe",
        "experts",
        value=lambda row: _once(ffn.experts_summary or "none" for ffn in row.ffns),
        text=lambda row: _joined(ffn.experts_summary for ffn in row.ffns if ffn.experts_summary is not None),
        description="mixture of experts: number of experts per token, total number of experts, and scoring function "
        "of the router",
    ),
    Field(
        "layers",
        "layers",
        "count",
        lambda row: row.spec.num_hidden_layers,
        lambda row: f"{len(row.spec.encoder.order)} + {row.spec.num_hidden_layers}" if row.spec.encoder else None,
        description="number of decoder layers, or of encoder layers if the model has no decoder",
    ),
    Field(
        "encoder_layers",
        value=lambda row: len(row.spec.encoder.order) if row.spec.encoder else None,
        description="number of encoder layers of an encoder-decoder model; null for other models",
    ),
    Field(
        "pattern",
        "pattern",
        value=lambda row: row.spec.pattern,
        description="order of the kinds of layers in the model",
    ),
    Field(
        "hidden_size",
        "hidden size",
        "count",
        lambda row: row.spec.hidden_size,
        description="width of the hidden states",
    ),
    Field("vocab_size", "vocab size", "count", lambda row: row.spec.vocab_size, description="size of the vocabulary"),
    Field(
        "tied_embeddings",
        "tied embeddings",
        value=lambda row: row.spec.tie_word_embeddings,
        description="whether the output head uses the weights of the embedding",
    ),
    Field(
        "context",
        "context",
        "count",
        lambda row: row.spec.max_position_embeddings,
        description="maximum sequence length that the model's config states, in tokens; null if it states none",
    ),
    Field(
        "kv_bytes_per_token",
        "KV cache per token",
        "kib",
        lambda row: row.cache.bytes_per_token,
        description="the same figure as `bytes_per_token` of `kvcache`",
    ),
    Field(
        "kv_bytes_per_token_beyond_windows",
        "KV cache per token beyond windows",
        "kib",
        lambda row: row.cache.bytes_per_token_beyond_windows,
        description="the same figure as `bytes_per_token_beyond_windows` of `kvcache`",
    ),
    Field(
        "cache_bytes_per_sequence",
        "cache and states per sequence",
        "gib",
        lambda row: row.cache.bytes_total,
        description="the same figure as `bytes_total` of `kvcache` for one sequence",
    ),
    Field(
        "kv_bytes_per_sequence",
        None,
        "gib",
        lambda row: row.cache.bytes_per_sequence,
        description="bytes of the keys and values per sequence, as `bytes_per_sequence` of `kvcache`. Recurrent "
        "states, the indexer's keys and cross-attention are not included; `kvcache` lists their bytes in other fields",
    ),
    Field(
        "inference_memory_bytes",
        "memory in inference",
        "gib",
        lambda row: None if row.inference is None else row.inference.peak_bytes,
        description="the same figure as `peak_bytes` of `memory --phase inference`",
    ),
    Field(
        "training_memory_bytes",
        "memory in training",
        "gib",
        lambda row: row.training.peak_bytes,
        description="the same figure as `peak_bytes` of `memory`: one sequence on one GPU, with AdamW",
    ),
    Field(
        "prefill_flops_per_token",
        "prefill per token",
        "gflops",
        scale="flops",
        description="the same figure as `flops_per_token` of `flops --phase prefill`",
    ),
    Field(
        "decode_flops_per_token",
        "decode per token",
        "gflops",
        scale="flops",
        description="the same figure as `flops_per_token` of `flops --phase decode`; null if the model has no decoder",
    ),
)


COMMAND_CLASS = VersusCommand
"""The class of the command. It reads the arguments after `--vs`."""
EVERY_MODEL = "--set changed every model; `--vs --set KEY=VALUE` compares a model with its variant"
"""The note of a table in which `--set` changed every model."""

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
            _compared(load(text, side.changes), seq, weights, tuple(side.changes))
            for side in both
            for text in side.models
        ]
    document = Document(
        command="compare",
        version=2,
        inputs={
            "models": first.models,
            "seq_len": seq,
            "weights": weights,
            "set": first.changes,
            "vs": None if second is None else {"models": second.models, "set": second.changes},
        },
        rows_key="models",
        rows=records(FIELDS, rows),
        blocks=[_block(rows, seq, mark=vs)] if format != "json" else [],
        tables=[table(FIELDS, rows)] if format == "csv" else [],
    )
    answer(document, format, output)


def _compared(spec: ModelSpec, seq: int, weights: str | None, changes: tuple[str, ...]) -> Compared:
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


def _once(texts: Iterable[str]) -> list[str]:
    """Return the texts without repetitions, or an empty list if every text is "none"."""
    unique = distinct(texts)
    return [] if unique == ["none"] else unique


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(distinct(texts)) or "none"


def _numbers(values: Iterable[int | None]) -> list[int | None]:
    """Return the values without repetitions, or an empty list if every value is None."""
    unique = list(dict.fromkeys(values))
    return [] if unique == [None] else unique


def _norm(spec: ModelSpec) -> str:
    name = spec.norm.label
    if not spec.norm.weight:
        return f"{name} without weights"
    return f"{name} with bias" if spec.norm.bias else name


def _heads(mixer: AttentionKind) -> str:
    return f"{mixer.key_dim}" if mixer.key_dim == mixer.value_dim else f"{mixer.key_dim} / {mixer.value_dim}"


def _window(mixer: AttentionKind) -> str:
    if mixer.sliding_window:
        return f"{mixer.sliding_window:,}"
    return f"chunks of {mixer.attention_chunk_size:,}" if mixer.attention_chunk_size else "none"


def _biases(layers: list[Layer]) -> list[str]:
    names: list[str] = []
    for layer in layers:
        names += [name for mixer in branches(layer.mixer) for name in mixer.biases]
        names += ["feed-forward"] if layer.ffn is not None and layer.ffn.bias else []
    return distinct(names)
