"""Size of the KV cache and of the recurrent states: sums over the ops that have a cache."""

from __future__ import annotations

from typing import Literal

import msgspec

from llmbench.errors import SpecError
from llmbench.sizing.dtypes import STATE_BYTES, DType, bytes_of
from llmbench.sizing.lower import lower
from llmbench.sizing.lower.builder import share
from llmbench.sizing.op import Cache
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.mixer import AttentionKind, Mixer, Parallel
from llmbench.spec.model import ModelSpec


class KVCache(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the cache of `batch` sequences with `seq_len` tokens each. Each layer's share is rounded up to bytes.

    bytes_per_token: bytes that one more token adds, as long as no window is full.
    bytes_per_sequence: bytes of keys and values of one sequence. A layer with a window stores only the newest tokens.
    state_bytes_per_sequence: bytes of recurrent and convolution states, which do not grow with the length.
    indexer_bytes_per_sequence: bytes of the keys of DeepSeek-V3.2's indexers.
    cross_bytes_per_sequence: bytes of keys and values of seq_len encoder tokens, for cross-attention.
    bytes_total: batch × the sum of the last four.
    reserved_bytes: bytes that an engine without hybrid caches reserves: whole blocks, every layer at full length.
    layers: bytes per sequence of each kind of layer, states included.
    """

    bytes_per_token: int
    bytes_per_sequence: int
    state_bytes_per_sequence: int
    indexer_bytes_per_sequence: int
    cross_bytes_per_sequence: int
    bytes_total: int
    reserved_bytes: int
    seq_len: int
    batch: int
    kv_dtype: str
    block_size: int
    layers: dict[str, int]


class SequenceBytes(msgspec.Struct, frozen=True):
    """Cache bytes of one sequence: rows that grow with the length, fixed states, indexer keys, cross-attention."""

    growing: int = 0
    state: int = 0
    indexer: int = 0
    cross: int = 0

    @property
    def total(self) -> int:
        """The sum of the four fields, in bytes."""
        return self.growing + self.state + self.indexer + self.cross

    def plus(self, other: SequenceBytes, times: int) -> SequenceBytes:
        """Add `other`, multiplied by `times`."""
        return SequenceBytes(
            self.growing + times * other.growing,
            self.state + times * other.state,
            self.indexer + times * other.indexer,
            self.cross + times * other.cross,
        )


def sequence_bytes(cache: Cache, seq_len: int, kv_dtype: DType, layout: Layout) -> SequenceBytes:
    """Cache bytes of one op, for one sequence on one GPU. Context parallelism splits the tokens but not the states."""
    tokens = share(seq_len, layout.cp)
    visible = tokens if cache.span is None else share(min(seq_len, cache.span), layout.cp)
    return SequenceBytes(
        growing=bytes_of(cache.per_token * visible, kv_dtype),
        state=STATE_BYTES * cache.state + bytes_of(cache.conv_state, kv_dtype),
        indexer=bytes_of(cache.indexer_per_token * tokens, kv_dtype),
        cross=bytes_of(cache.cross_per_token * tokens, kv_dtype),
    )


def kv_cache(
    spec: ModelSpec,
    seq_len: int,
    *,
    batch: int = 1,
    kv_dtype: DType = "bf16",
    block_size: int = 16,
    layout: Layout | None = None,
) -> KVCache:
    """Size the cache on one GPU of a layout. Without a layout, one GPU has the whole model."""
    if seq_len < 1 or batch < 1 or block_size < 1:
        raise SpecError("seq, batch and block size must be at least 1")
    per_token = reserved = 0
    blocks = -(-seq_len // block_size) * block_size
    whole = SequenceBytes()
    layers: dict[str, int] = {}
    layout = layout or Layout()
    for op in lower(spec, Workload.prefill(1, kv_dtype=kv_dtype), layout):
        cache = op.cache
        if cache is None:
            continue
        count = op.count
        own = sequence_bytes(cache, seq_len, kv_dtype, layout)
        whole = whole.plus(own, count)
        per_token += count * bytes_of(cache.per_token, kv_dtype)
        reserved += count * bytes_of((cache.per_token + cache.indexer_per_token) * share(blocks, layout.cp), kv_dtype)
        layers[op.layer] = layers.get(op.layer, 0) + count * (own.growing + own.state)
    return KVCache(
        bytes_per_token=per_token,
        bytes_per_sequence=whole.growing,
        state_bytes_per_sequence=whole.state,
        indexer_bytes_per_sequence=whole.indexer,
        cross_bytes_per_sequence=whole.cross,
        bytes_total=batch * whole.total,
        reserved_bytes=batch * (reserved + whole.state + whole.cross),
        seq_len=seq_len,
        batch=batch,
        kv_dtype=kv_dtype,
        block_size=block_size,
        layers=layers,
    )


def as_heads(spec: ModelSpec, kind: Literal["mha", "gqa", "mqa"], *, groups: int = 8) -> ModelSpec | None:
    """The model with another number of key-value heads.

    mha: one per query head. gqa: `groups` of them. mqa: one in all. Latent attention becomes ordinary attention with
    the key and value widths of its expanded form. Returns None if no mixer can change: the model has no attention
    (state-space), or the number of query heads is not divisible by `groups`.
    """
    from msgspec.structs import replace

    changed = False

    def convert(mixer: Mixer | None) -> Mixer | None:
        nonlocal changed
        if isinstance(mixer, Parallel):
            branches = tuple(convert(branch) for branch in mixer.branches)
            return replace(mixer, branches=branches)
        ordinary = mixer.ordinary if isinstance(mixer, AttentionKind) else None
        if ordinary is None:
            return mixer
        heads = ordinary.num_attention_heads
        kv_heads = heads if kind == "mha" else 1 if kind == "mqa" else groups
        if heads % kv_heads:
            return ordinary
        changed = True
        return replace(ordinary, num_key_value_heads=kv_heads)

    layers = {name: replace(layer, mixer=convert(layer.mixer)) for name, layer in spec.layers.items()}
    return replace(spec, layers=layers) if changed else None
