"""`llmbench kvcache`: what a model keeps between steps."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import typer

from llmbench.cli.options import (
    MODEL_HELP,
    SEQ,
    As,
    Batch,
    CacheType,
    Explain,
    Output,
    Seq,
    Set,
    answer,
    approximate_lines,
    length_notes,
    load,
    title,
)
from llmbench.report.describe import distinct, headline, kind_text
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import plural, size
from llmbench.sizing.dtypes import DType
from llmbench.sizing.kvcache import KVCache, as_heads, kv_cache
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.mixer import Attention, CompressedAttention, LatentAttention, SingleMixer, branches
from llmbench.spec.model import ModelSpec

OptionalModels = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help=MODEL_HELP + " Without one, the bundled models are compared."),
]
Held = Annotated[CacheType, typer.Option("--kv-dtype", help="Format of the cache, without its scales.")]
BlockSize = Annotated[
    int, typer.Option("--block-size", metavar="TOKENS", help="Tokens of an engine's cache block.", min=1, max=2**20)
]


def command(
    models: OptionalModels = None,
    seq: Seq = SEQ,
    batch: Batch = 1,
    kv_dtype: Held = "bf16",
    block_size: BlockSize = 16,
    explain: Explain = False,
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """What a model keeps between steps: KV cache and states.

    A token, a sequence, a batch; windows, latents and hybrids as they are; and what an engine reserves.

    Examples:

      llmbench kvcache --seq 4096

      llmbench kvcache llama3-8b --seq 131072 --batch 16

      llmbench kvcache deepseek-v3 --kv-dtype fp8 --explain

      llmbench kvcache gemma3-27b jamba-v0.1 --seq 32768 --format markdown
    """
    specs = [load(text, set) for text in models] if models else _bundled(set)
    caches = [kv_cache(spec, seq, batch=batch, kv_dtype=kv_dtype, block_size=block_size) for spec in specs]
    document = Document(
        command="kvcache",
        inputs={
            "models": models or [],
            "seq_len": seq,
            "batch": batch,
            "kv_dtype": kv_dtype,
            "block_size": block_size,
            "set": set or [],
        },
        rows_key="models",
        rows=[_row(spec, cache) for spec, cache in zip(specs, caches, strict=True)],
        blocks=[],
    )
    if format != "json":
        if models and len(models) == 1:
            document.blocks += _one(specs[0], caches[0], kv_dtype, explain)
        else:
            document.blocks.append(_comparison(specs, caches, sorted_by_size=not models))
    answer(document, format, output)


def _bundled(changes: list[str] | None) -> list[ModelSpec]:
    if changes:
        raise typer.BadParameter("--set needs a MODEL")
    return [load_bundled(name) for name in bundled_models()]


def _row(spec: ModelSpec, cache: KVCache) -> dict[str, Any]:
    return {
        "model": spec.name,
        "approximate": bool(spec.approximate),
        "approximate_because": list(spec.approximate),
        "notes": [*spec.notes, *length_notes(spec, cache.seq_len)],
        "seq_len": cache.seq_len,
        "batch": cache.batch,
        "kv_dtype": cache.kv_dtype,
        "block_size": cache.block_size,
        "bytes_per_token": cache.bytes_per_token,
        "bytes_per_sequence": cache.bytes_per_sequence,
        "state_bytes_per_sequence": cache.state_bytes_per_sequence,
        "indexer_bytes_per_sequence": cache.indexer_bytes_per_sequence,
        "cross_bytes_per_sequence": cache.cross_bytes_per_sequence,
        "bytes_total": cache.bytes_total,
        "reserved_bytes": cache.reserved_bytes,
        "layers": cache.layers,
    }


def _kinds(spec: ModelSpec) -> str:
    kinds = distinct(kind_text(mixer) for layer in spec.layers.values() for mixer in branches(layer.mixer))
    return " + ".join(kinds) or "none"


def _comparison(specs: list[ModelSpec], caches: list[KVCache], *, sorted_by_size: bool) -> Block:
    pairs = list(zip(specs, caches, strict=True))
    if sorted_by_size:
        pairs = [pair for pair in pairs if pair[1].bytes_total]
        pairs.sort(key=lambda pair: pair[1].bytes_total)
    rows = [
        [
            title(spec),
            _kinds(spec),
            cache.bytes_per_token,
            cache.bytes_per_sequence,
            cache.state_bytes_per_sequence or None,
            cache.bytes_total,
            cache.reserved_bytes,
        ]
        for spec, cache in pairs
    ]
    columns = [
        Column("model", name=True),
        Column("kind", wraps=True),
        Column("a token", "bytes"),
        Column("a sequence", "gib"),
        Column("fixed state", "gib"),
        Column("total", "gib"),
        Column("reserved", "gib"),
    ]
    first = caches[0]
    left_out = len(specs) - len(pairs)
    lines = ["total adds fixed states, indexer keys and cross-attention; reserved: whole blocks, windows ignored"]
    if left_out:
        lines.append(f"{left_out} without a cache (encoders) left out")
    for spec, cache in pairs:
        if not cache.bytes_total:
            lines.append(_no_cache(spec))
        lines += [f"{spec.name}: {line}" for line in approximate_lines(spec) if line.startswith("approximate")]
    notes = [] if sorted_by_size else [note for spec in specs for note in length_notes(spec, first.seq_len)]
    return Block(headline=_context(first), table=Table(columns=columns, rows=rows), lines=lines, notes=notes)


def _no_cache(spec: ModelSpec) -> str:
    what = "reads all tokens at once" if not spec.decodes else "has no mixer that looks back"
    return f"{spec.name} keeps no cache: it {what}"


def _context(cache: KVCache) -> str:
    tokens = plural(cache.seq_len, "token")
    return f"KV cache · {tokens} · batch {cache.batch:,} · {cache.kv_dtype} · blocks of {cache.block_size:,}"


def _one(spec: ModelSpec, cache: KVCache, kv_dtype: DType, explain: bool) -> list[Block]:
    rows = _rows(spec, cache, kv_dtype, explain)
    rows.append(["total", "", "", "", "", sum(row[-1] for row in rows)])
    columns = [
        Column("layers", name=True),
        Column("count", "count"),
        Column("kind"),
        Column("elements a token", wraps=True),
        Column("keeps"),
        Column("a sequence", "gib"),
    ]
    if cache.bytes_total:
        one, whole = cache.bytes_total // cache.batch, cache.bytes_total
        lines = [f"a token {size(cache.bytes_per_token)} · a sequence {size(one)}"]
        if cache.batch > 1:
            lines[0] += f" · {cache.batch:,} sequences {size(whole)}"
        lines.append(f"reserved by an engine without hybrid caches: {size(cache.reserved_bytes)}")
    else:
        lines = [_no_cache(spec)]
    blocks = [
        Block(
            subject=title(spec),
            headline=f"{headline(spec)}\n{_context(cache)}",
            table=Table(columns=columns, rows=rows, total=True),
            lines=lines + approximate_lines(spec),
            notes=length_notes(spec, cache.seq_len),
        )
    ]
    variants = _variants(spec, cache, kv_dtype) if cache.bytes_total else None
    if variants is not None:
        blocks.append(Block(subject=title(spec), table=variants))
    return blocks


def _rows(spec: ModelSpec, cache: KVCache, kv_dtype: DType, explain: bool) -> list[list[Any]]:
    """What one sequence keeps: a row a mixer of each kind of layer, and rows for what stands beside them."""
    rows: list[list[Any]] = []
    for name, layer in spec.layers.items():
        mixers = branches(layer.mixer)
        for mixer in mixers:
            held = cache if len(mixers) == 1 else kv_cache(_alone(spec, name, mixer), cache.seq_len, kv_dtype=kv_dtype)
            size_here = held.layers.get(name, 0)
            formula, span = (_formula(mixer, explain), _span(mixer)) if size_here else ("none", "nothing")
            if getattr(mixer, "shares_kv", False):
                formula = "none, reads another layer's"
            rows.append([name, spec.order.count(name), kind_text(mixer), formula, span, size_here])
    if cache.indexer_bytes_per_sequence:
        rows.append(["indexer keys", "", "", "index_head_dim", "every token", cache.indexer_bytes_per_sequence])
    if cache.cross_bytes_per_sequence:
        crossing = [layer.cross_attention for layer in spec.layers.values() if layer.cross_attention is not None]
        texts = distinct(_formula(mixer, explain) for mixer in crossing)
        text = "; ".join(texts)
        rows.append(["cross-attention", "", "", text, "the encoder's tokens", cache.cross_bytes_per_sequence])
    return rows


def _alone(spec: ModelSpec, name: str, mixer: SingleMixer) -> ModelSpec:
    """The model with one of the parallel branches of a kind of layer."""
    layer = msgspec.structs.replace(spec.layers[name], mixer=mixer)
    return msgspec.structs.replace(spec, layers={**spec.layers, name: layer})


def _formula(mixer: object, explain: bool) -> str:
    if isinstance(mixer, LatentAttention):
        text = "kv_lora_rank + qk_rope_head_dim"
        total = mixer.kv_lora_rank + mixer.qk_rope_head_dim
        return f"{text} = {mixer.kv_lora_rank} + {mixer.qk_rope_head_dim} = {total:,}" if explain else text
    if isinstance(mixer, CompressedAttention):
        rate = mixer.compress_rate
        text = "head_dim" if rate is None else "head_dim, + head_dim / compress_rate"
        numbers = f"{mixer.head_dim}" if rate is None else f"{mixer.head_dim}, + {mixer.head_dim} / {rate}"
        return f"{text} = {numbers}" if explain else text
    if not isinstance(mixer, Attention):
        return "a fixed state"
    wide = f"({mixer.head_dim} + {mixer.value_dim})"
    if mixer.head_dim == mixer.value_dim:
        text = "2 × kv_heads × head_dim"
        numbers = f"2 × {mixer.num_key_value_heads} × {mixer.head_dim}"
    else:
        text = "kv_heads × (head_dim + v_head_dim)"
        numbers = f"{mixer.num_key_value_heads} × {wide}"
    total = mixer.num_key_value_heads * (mixer.head_dim + mixer.value_dim)
    return f"{text} = {numbers} = {total:,}" if explain else text


def _span(mixer: object) -> str:
    span = getattr(mixer, "sliding_window", None) or getattr(mixer, "attention_chunk_size", None)
    if isinstance(mixer, CompressedAttention):
        return f"the last {span:,}" + (", + every token" if mixer.compress_rate else "")
    if not isinstance(mixer, (Attention, LatentAttention)):
        return "always the same"
    return f"the last {span:,}" if span else "every token"


def _variants(spec: ModelSpec, cache: KVCache, kv_dtype: DType) -> Table | None:
    """What the cache would be with other key-value heads."""
    rows: list[list[Any]] = []
    for kind in ("mha", "gqa", "mqa"):
        other = as_heads(spec, kind)
        if other is None:
            continue
        each = kv_cache(other, cache.seq_len, batch=cache.batch, kv_dtype=kv_dtype, block_size=cache.block_size)
        name = {"mha": "MHA", "gqa": "GQA, 8 KV heads", "mqa": "MQA"}[kind]
        rows.append([name, each.bytes_per_token, each.bytes_total, each.bytes_total / cache.bytes_total])
    if not rows:
        return None
    rows.append([f"as it is ({_kinds(spec)})", cache.bytes_per_token, cache.bytes_total, 1.0])
    columns = [
        Column("it would be as", name=True),
        Column("a token", "bytes"),
        Column("total", "gib"),
        Column("ratio", "ratio"),
    ]
    return Table(columns=columns, rows=rows)
