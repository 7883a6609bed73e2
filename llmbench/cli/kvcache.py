"""`llmbench kvcache`: what a model keeps between steps."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from llmbench.cli.options import (
    MODEL_HELP,
    As,
    Batch,
    Explain,
    Output,
    Seq,
    Set,
    answer,
    approximate_lines,
    load,
    title,
)
from llmbench.report.describe import distinct, headline, kind_text
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import size
from llmbench.sizing.dtypes import DType
from llmbench.sizing.kvcache import KVCache, as_heads, kv_cache
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.mixer import Attention, CompressedAttention, LatentAttention, branches
from llmbench.spec.model import ModelSpec

OptionalModels = Annotated[
    list[str] | None,
    typer.Argument(metavar="[MODEL]...", help=MODEL_HELP + " Without one, the bundled models are compared."),
]
CacheType = Annotated[
    Literal["bf16", "fp16", "fp32", "fp8", "int8", "int4"],
    typer.Option("--kv-dtype", help="Format of the cache, without its scales."),
]
BlockSize = Annotated[
    int, typer.Option("--block-size", metavar="TOKENS", help="Tokens of an engine's cache block.", min=1, max=2**20)
]


def command(
    models: OptionalModels = None,
    seq: Seq = 4096,
    batch: Batch = 1,
    kv_dtype: CacheType = "bf16",
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
    pairs = [(spec, cache) for spec, cache in zip(specs, caches, strict=True) if _has_cache(cache)]
    if sorted_by_size:
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
        Column("model"),
        Column("attention", wraps=True),
        Column("a token (B)", "count"),
        Column("a sequence (GiB)", "gib"),
        Column("fixed state (GiB)", "gib"),
        Column("total (GiB)", "gib"),
        Column("reserved (GiB)", "gib"),
    ]
    first = caches[0]
    left_out = len(specs) - len(pairs)
    lines = ["total adds fixed states, indexer keys and cross-attention; reserved: whole blocks, windows ignored"]
    if left_out:
        lines.append(f"{left_out} without a cache (encoders) left out")
    for spec, _ in pairs:
        lines += [f"{spec.name}: {line}" for line in approximate_lines(spec) if line.startswith("approximate")]
    return Block(headline=_context(first), table=Table(columns=columns, rows=rows), lines=lines)


def _has_cache(cache: KVCache) -> bool:
    return bool(cache.bytes_per_token or cache.state_bytes_per_sequence)


def _context(cache: KVCache) -> str:
    return (
        f"KV cache · {cache.seq_len:,} tokens · batch {cache.batch} · {cache.kv_dtype} · blocks of {cache.block_size}"
    )


def _one(spec: ModelSpec, cache: KVCache, kv_dtype: DType, explain: bool) -> list[Block]:
    rows = []
    for name, layer in spec.layers.items():
        for mixer in branches(layer.mixer):
            count = spec.order.count(name)
            rows.append(
                [
                    name,
                    count,
                    kind_text(mixer),
                    _formula(mixer, explain),
                    _span(mixer),
                    _share(spec, cache, name),
                ]
            )
    columns = [
        Column("layers"),
        Column("count", "count"),
        Column("kind"),
        Column("elements a token", wraps=True),
        Column("keeps"),
        Column("a sequence (GiB)", "gib"),
    ]
    lines = [
        f"a token {size(cache.bytes_per_token)} · a sequence {size(cache.bytes_per_sequence)} · "
        f"total {size(cache.bytes_total)}"
    ]
    apart = [
        f"{what} {size(value)} a sequence"
        for what, value in (
            ("fixed states", cache.state_bytes_per_sequence),
            ("indexer keys", cache.indexer_bytes_per_sequence),
            ("cross-attention", cache.cross_bytes_per_sequence),
        )
        if value
    ]
    if apart:
        lines.append("in the total: " + " · ".join(apart))
    lines.append(f"reserved by an engine without hybrid caches: {size(cache.reserved_bytes)}")
    blocks = [
        Block(
            subject=title(spec),
            headline=f"{headline(spec)}\n{_context(cache)}",
            table=Table(columns=columns, rows=rows),
            lines=lines + approximate_lines(spec),
        )
    ]
    variants = _variants(spec, cache, kv_dtype)
    if variants is not None:
        blocks.append(Block(subject=title(spec), table=variants))
    return blocks


def _share(spec: ModelSpec, cache: KVCache, name: str) -> int | None:
    return cache.layers.get(name)


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
    if mixer.shares_kv:
        return "none, reads another layer's"
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
    rows.append(["as it is", cache.bytes_per_token, cache.bytes_total, 1.0])
    columns = [
        Column("it would be as"),
        Column("a token (B)", "count"),
        Column("total (GiB)", "gib"),
        Column("ratio", "ratio"),
    ]
    return Table(columns=columns, rows=rows)
