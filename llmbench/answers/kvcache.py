"""Answers of `llmbench kvcache`: the sizes of KV caches and recurrent states, as rows and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from llmbench.answers.about import (
    MODEL_FIELDS,
    AboutModel,
    comparison_headline,
    length_notes,
    model_block,
    sweep_fields,
)
from llmbench.answers.formulas import FORMULAS, formula_block
from llmbench.errors import SpecError
from llmbench.report.document import Block, Document, Table, table
from llmbench.report.fields import Field, inside, records
from llmbench.report.units import Unit, fitting, plural, size
from llmbench.sizing.dtypes import KVDType
from llmbench.sizing.kvcache import KVCache, as_heads, kv_cache
from llmbench.spec.mixer import SingleMixer, branches
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.sizing.formula import Formula


class Cached(AboutModel, kw_only=True):
    """A model and the size of its cache. formulas: the formulas of the size, if the user asked for them."""

    cache: KVCache
    formulas: list[Formula] | None


FIELDS: tuple[Field[Cached], ...] = (
    *MODEL_FIELDS,
    Field("kind", "attention", value=lambda row: _kinds(row.spec, windows=True), wraps=True, in_json=False),
    *inside(
        "cache",
        Field("seq_len", description="value of `--seq`: tokens per sequence"),
        Field("batch", description="value of `--batch`: number of sequences"),
        Field("kv_dtype", description="value of `--kv-dtype`: number format of the cache"),
        Field("block_size", description="value of `--block-size`: tokens per cache block"),
        Field(
            "bytes_per_token",
            "per token",
            "kib",
            description="bytes that one more token adds, as long as no sliding window is full. The indexer's key is "
            "included",
        ),
        Field(
            "bytes_per_token_beyond_windows",
            "per token beyond windows",
            "kib",
            description="bytes that one more token adds when every sliding window is full",
        ),
        Field(
            "bytes_per_sequence",
            "per sequence",
            "gib",
            description="bytes of the keys and values of `seq_len` tokens. A layer with a sliding window stores only "
            "the newest tokens. The bytes of the next three fields are not included",
        ),
        Field(
            "state_bytes_per_sequence",
            "fixed state",
            "gib",
            description="bytes of recurrent and convolution states, which do not depend on the sequence length",
        ),
        Field(
            "indexer_bytes_per_sequence",
            description="bytes of the indexer's keys; in sparse attention, the indexer selects the tokens that a query "
            "attends to",
        ),
        Field(
            "cross_bytes_per_sequence",
            description="bytes of the keys and values of cross-attention for `seq_len` encoder tokens, or for the "
            "fixed number of encoder tokens of Whisper",
        ),
        Field("bytes_total", "total", "gib", description="`batch` × the sum of the four fields above"),
        Field(
            "reserved_bytes",
            "reserved",
            "gib",
            description="bytes that an engine reserves if it allocates whole blocks and ignores sliding windows",
        ),
        Field("layers", description="bytes per sequence of each kind of layer, including its states"),
    ),
    Field(
        "formulas",
        value=lambda row: None if row.formulas is None else records(FORMULAS, row.formulas),
        description="with `--explain`: the formulas of the figures, as a list of objects; else null",
    ),
)


def cached(
    specs: Iterable[ModelSpec],
    seq: int,
    *,
    batch: int = 1,
    kv_dtype: KVDType = "bf16",
    block_size: int = 16,
    explain: bool = False,
) -> list[Cached]:
    """Return the models with the sizes of their caches. `explain`: also return the formulas."""
    rows = []
    for spec in specs:
        cache = kv_cache(spec, seq, batch=batch, kv_dtype=kv_dtype, block_size=block_size)
        rows.append(Cached(spec=spec, tokens=seq, cache=cache, formulas=_formulas(spec, cache) if explain else None))
    return rows


def _formulas(spec: ModelSpec, cache: KVCache) -> list[Formula]:
    from llmbench.sizing.cache_formulas import kv_cache_formulas  # only --explain needs it

    return kv_cache_formulas(spec, cache)


def document(
    rows: list[Cached],
    inputs: dict[str, Any],
    *,
    sorted_by_size: bool = False,
    tables: bool = True,
) -> Document:
    """Return the answer for some models. `inputs`: the options. `tables`: whether people will read it.

    `sorted_by_size`: whether the table begins with the smallest cache.
    """
    sizes = Document(command="kvcache", inputs=inputs, rows_key="models", rows=records(FIELDS, rows), blocks=[])
    if not tables:
        return sizes
    if len(rows) == 1:
        sizes.blocks += _one(rows[0], rows[0].cache.kv_dtype)
    else:
        sizes.blocks.append(_comparison(rows, sorted_by_size=sorted_by_size))
        sizes.tables = [table(FIELDS, rows)]
    for row in rows:
        if row.formulas:
            where = "" if len(rows) == 1 else f"{row.spec.name} · {_context([row.cache])}"
            sizes.blocks.append(formula_block(row.formulas, where))
    return sizes


def _kinds(spec: ModelSpec, *, windows: bool = False) -> str:
    """Return the kinds of attention and recurrence of a model. `windows`: say also which layers have a window."""

    def kind(mixer: SingleMixer) -> str:
        spans = [row.span for row in mixer.cache_rows if row.span is not None]
        return f"{mixer.label} (window {max(spans):,})" if windows and spans else mixer.label

    return " + ".join(dict.fromkeys(map(kind, spec.mixers))) or "none"


def _comparison(rows: list[Cached], *, sorted_by_size: bool) -> Block:
    shown = rows
    if sorted_by_size:
        shown = sorted((row for row in rows if row.cache.bytes_total), key=lambda row: row.cache.bytes_total)
    lines = ["reserved: for an engine that allocates whole blocks and ignores sliding windows"]
    if any(row.cache.bytes_per_sequence * row.cache.batch != row.cache.bytes_total for row in rows):
        lines.insert(0, "total: keys, values, fixed states, indexer keys and cross-attention")
    if len(shown) < len(rows):
        lines.append(f"{len(rows) - len(shown)} models without a cache (encoders) are left out")
    for row in shown:
        if not row.cache.bytes_total:
            lines.append(_no_cache(row.spec))
        lines += [f"{row.spec.name} is approximate: {reason}" for reason in row.approximate_because]
    notes = [note for row in rows for note in length_notes(row.spec, row.tokens)]
    if sorted_by_size and notes:
        exceeded = list(dict.fromkeys(row.spec.name for row in shown if length_notes(row.spec, row.tokens)))
        named = f": {', '.join(exceeded)}" if len(exceeded) <= 6 else ""
        tokens = max(row.tokens for row in rows)
        notes = [f"{tokens:,} tokens exceed the context length of {plural(len(exceeded), 'model')}{named}"]
    return Block(
        headline=comparison_headline([row.spec for row in rows], _context([row.cache for row in rows])),
        table=table(_columns(rows), shown),
        lines=list(dict.fromkeys(lines)),
        notes=list(dict.fromkeys(notes)),
    )


SWEPT = {"seq_len": "tokens", "batch": "batch", "kv_dtype": "KV format"}
"""The headings of the options that a sweep can vary."""


def _columns(rows: list[Cached]) -> list[Field[Cached]]:
    """Return the columns of a comparison, the most important one first. Columns that say nothing new are left out."""
    fields = {field.name: field for field in sweep_fields(FIELDS, rows, SWEPT)}
    names = [*SWEPT, "bytes_total", "bytes_per_token", "bytes_per_token_beyond_windows", "reserved_bytes"]
    if all(row.cache.bytes_per_token_beyond_windows == row.cache.bytes_per_token for row in rows):
        names.remove("bytes_per_token_beyond_windows")
    if any(row.spec != rows[0].spec for row in rows):  # else the headline names the model
        names = ["model", "kind", *names]
    if any(row.cache.state_bytes_per_sequence for row in rows):
        names.append("state_bytes_per_sequence")
    if any(row.cache.bytes_per_sequence != row.cache.bytes_total for row in rows):
        names.append("bytes_per_sequence")
    spare = {"reserved_bytes": 1, "state_bytes_per_sequence": 2, "bytes_per_sequence": 3}
    return [msgspec.structs.replace(fields[name], spare=spare.get(name, 0)) for name in names]


def _per_token(spec: ModelSpec, cache: KVCache) -> str:
    """Return how many bytes one more token adds, before and after the sliding windows are full."""
    spans = {row.span for mixer in spec.mixers for row in mixer.cache_rows if row.span is not None}
    if not spans:
        return f"{size(cache.bytes_per_token)} per token"
    beyond = size(cache.bytes_per_token_beyond_windows) if cache.bytes_per_token_beyond_windows else "nothing"
    longest = f" {max(spans):,} tokens" if len(spans) > 1 else ""
    return f"{size(cache.bytes_per_token)} per token up to {min(spans):,} tokens, {beyond} beyond{longest}"


def _no_cache(spec: ModelSpec) -> str:
    reason = "reads all tokens at once" if not spec.decodes else "has no layer that reads earlier tokens"
    return f"{spec.name} keeps no cache: it {reason}"


def _context(caches: Sequence[KVCache]) -> str:
    """Return a line with the options that the caches share."""
    first = caches[0]
    parts = ["KV cache"]
    if all(cache.seq_len == first.seq_len for cache in caches):
        parts.append(plural(first.seq_len, "token"))
    if all(cache.batch == first.batch for cache in caches):
        parts.append(f"batch {first.batch:,}")
    if all(cache.kv_dtype == first.kv_dtype for cache in caches):
        parts.append(first.kv_dtype)
    return " · ".join([*parts, f"blocks of {first.block_size:,}"])


def _one(row: Cached, kv_dtype: KVDType) -> list[Block]:
    spec, cache = row.spec, row.cache
    layers = _rows(spec, cache, kv_dtype)
    unit = fitting("gib", [layer["bytes_per_sequence"] for layer in layers])
    columns: tuple[Field[dict[str, Any]], ...] = (
        Field("layers", "layers"),
        Field("count", "count", "count"),
        Field("kind", "attention", wraps=True),
        Field("bytes_per_sequence", "per sequence", unit),
        Field("tokens_kept", "tokens kept", wraps=True, spare=1),
        Field("elements_per_token", "elements per token", wraps=True, spare=2),
    )
    total = {"layers": "total", "bytes_per_sequence": sum(layer["bytes_per_sequence"] for layer in layers)}
    if cache.bytes_total:
        lines = [f"{_per_token(spec, cache)} · {size(cache.bytes_total // cache.batch)} per sequence"]
        if cache.batch > 1:
            lines[0] += f" · {size(cache.bytes_total)} for {cache.batch:,} sequences"
        if cache.reserved_bytes != cache.bytes_total:
            lines.append(
                f"an engine that allocates whole blocks and ignores sliding windows reserves "
                f"{size(cache.reserved_bytes)}"
            )
    else:
        lines = [_no_cache(spec)]
    blocks = [model_block(row, context=_context([cache]), table=table(columns, layers, total=total), lines=lines)]
    variants = _variants(spec, cache, kv_dtype, unit) if cache.bytes_total else None
    if variants is not None:
        blocks.append(Block(about=blocks[0].about, table=variants))
    return blocks


def _rows(spec: ModelSpec, cache: KVCache, kv_dtype: KVDType) -> list[dict[str, Any]]:
    """Return the table rows for the cache of one sequence.

    Each mixer of each kind of layer has a row. The indexer keys and the keys and values of cross-attention have rows of
    their own.
    """
    from llmbench.report.describe import cache_span, distinct  # imported here, because only tables need them
    from llmbench.sizing.formula import cache_formula

    rows: list[dict[str, Any]] = []
    for name, layer in spec.layers.items():
        mixers = branches(layer.mixer)
        for mixer in mixers:
            own = cache if len(mixers) == 1 else kv_cache(_alone(spec, name, mixer), cache.seq_len, kv_dtype=kv_dtype)
            bytes_here = own.layers.get(name, 0)
            elements = cache_formula(mixer, mixer.cache_rows)
            row = {"layers": name, "count": spec.order.count(name), "kind": mixer.label}
            row |= {"elements_per_token": elements, "tokens_kept": cache_span(mixer), "bytes_per_sequence": bytes_here}
            rows.append(row)
    if cache.indexer_bytes_per_sequence:
        row = {"layers": "indexer keys", "elements_per_token": "index_head_dim", "tokens_kept": "every token"}
        rows.append(row | {"bytes_per_sequence": cache.indexer_bytes_per_sequence})
    if cache.cross_bytes_per_sequence:
        crossing = [layer.cross_attention for layer in spec.layers.values() if layer.cross_attention is not None]
        text = "; ".join(distinct(cache_formula(mixer, (mixer.cache_row,)) for mixer in crossing))
        row = {"layers": "cross-attention", "elements_per_token": text, "tokens_kept": "the encoder's tokens"}
        rows.append(row | {"bytes_per_sequence": cache.cross_bytes_per_sequence})
    return rows


def _alone(spec: ModelSpec, name: str, mixer: SingleMixer) -> ModelSpec:
    """Return the model with `mixer` as the only mixer in the layers of kind `name`."""
    layer = msgspec.structs.replace(spec.layers[name], mixer=mixer)
    return msgspec.structs.replace(spec, layers={**spec.layers, name: layer})


def _variants(spec: ModelSpec, cache: KVCache, kv_dtype: KVDType, unit: Unit) -> Table | None:
    """Return a table with the cache size that the model would have as MHA, GQA and MQA, in `unit`.

    Return None if the number of KV heads cannot be changed in any layer.
    """
    rows: list[tuple[str, KVCache]] = []
    variants = (
        ("MHA", as_heads(spec, "mha")),
        ("GQA, 8 KV heads", as_heads(spec, "gqa")),
        ("MQA", as_heads(spec, "mqa")),
    )
    for name, variant in variants:
        if variant is not None:
            with suppress(SpecError):  # a format of latent attention cannot store its heads
                variant_cache = kv_cache(
                    variant, cache.seq_len, batch=cache.batch, kv_dtype=kv_dtype, block_size=cache.block_size
                )
                rows.append((name, variant_cache))
    if not rows:
        return None
    columns: list[Field[tuple[str, KVCache]]] = [
        Field("attention", "if attention were", value=lambda row: row[0]),
        Field("bytes_per_token", "per token", "kib", value=lambda row: row[1].bytes_per_token),
        Field("beyond", "beyond windows", "kib", value=lambda row: row[1].bytes_per_token_beyond_windows),
        Field("bytes_total", "total", unit, value=lambda row: row[1].bytes_total),
        Field("ratio", "ratio", "ratio", value=lambda row: row[1].bytes_total / cache.bytes_total),
    ]
    if cache.bytes_per_token_beyond_windows == cache.bytes_per_token:
        columns = [column for column in columns if column.name != "beyond"]
    rows.append((f"as it is ({_kinds(spec)})", cache))
    return table(columns, rows)
