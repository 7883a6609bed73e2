"""Bytes of the KV cache and of the recurrent states. They are sums over the ops that have a cache."""

from __future__ import annotations

from math import ceil
from typing import Literal

import msgspec

from llmbench.errors import SpecError
from llmbench.sizing.dtypes import KVDType, bytes_of, is_plain
from llmbench.sizing.kv_formats import token_bytes
from llmbench.sizing.lower import lower
from llmbench.sizing.lower.builder import share
from llmbench.sizing.op import Cache
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.mixer import AttentionKind, CacheRow, Mixer, Parallel
from llmbench.spec.model import ModelSpec


class KVCache(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of the cache for `batch` sequences of `seq_len` tokens each. The bytes of each layer are rounded up.

    bytes_per_token: bytes that one more token needs, as long as no sliding window is full. The indexer's key is
        included.
    bytes_per_token_beyond_windows: bytes that one more token needs when every sliding window is full.
    bytes_per_sequence: bytes of keys and values per sequence. A layer with a window stores only its newest tokens.
    state_bytes_per_sequence: bytes of recurrent and convolution states per sequence. They do not depend on seq_len.
    indexer_bytes_per_sequence: bytes of the keys of DeepSeek-V3.2's indexers per sequence.
    cross_bytes_per_sequence: bytes of the keys and values of the encoder tokens per sequence, for cross-attention. The
        encoder has seq_len tokens, unless it always has the same number.
    bytes_total: bytes of all sequences: batch × the sum of the four per-sequence fields above.
    reserved_bytes: bytes that an engine without hybrid caches reserves for all sequences. Such an engine reserves whole
        blocks, and stores all tokens in every layer.
    kv_dtype: format of the cache.
    block_size: tokens per block of the engine's cache.
    layers: bytes per sequence of each kind of layer, states included.
    """

    bytes_per_token: int
    bytes_per_token_beyond_windows: int
    bytes_per_sequence: int
    state_bytes_per_sequence: int
    indexer_bytes_per_sequence: int
    cross_bytes_per_sequence: int
    bytes_total: int
    reserved_bytes: int
    seq_len: int
    batch: int
    kv_dtype: KVDType
    block_size: int
    layers: dict[str, int]


class SequenceBytes(msgspec.Struct, frozen=True):
    """Cache bytes of one sequence.

    growing: bytes of cache rows, which grow with the sequence length. state: bytes of states of fixed size.
    indexer: bytes of indexer keys. cross: bytes of the keys and values of cross-attention.
    """

    growing: int = 0
    state: int = 0
    indexer: int = 0
    cross: int = 0

    @property
    def total(self) -> int:
        """The sum of the four fields, in bytes."""
        return self.growing + self.state + self.indexer + self.cross

    def plus(self, other: SequenceBytes, times: int) -> SequenceBytes:
        """Return the sum of these bytes and `times` × the bytes of `other`."""
        return SequenceBytes(
            self.growing + times * other.growing,
            self.state + times * other.state,
            self.indexer + times * other.indexer,
            self.cross + times * other.cross,
        )


def sequence_bytes(cache: Cache, seq_len: int, kv_dtype: KVDType, layout: Layout) -> SequenceBytes:
    """Return the cache bytes of one op for one sequence on one GPU.

    Context parallelism splits the tokens over GPUs, but every GPU stores the whole states.
    """
    tokens = share(seq_len, layout.cp)
    visible = tokens if cache.span is None else share(min(seq_len, cache.span), layout.cp)
    return SequenceBytes(
        growing=_stored(cache.row, cache.per_token, visible, kv_dtype),
        state=cache.state_bytes + bytes_of(cache.conv_state, kv_dtype if is_plain(kv_dtype) else "bf16"),
        indexer=_stored(cache.indexer_row, cache.indexer_per_token, tokens, kv_dtype, indexer=True),
        cross=_stored(
            cache.cross_row, cache.cross_per_token, share(cache.cross_tokens or seq_len, layout.cp), kv_dtype
        ),
    )


def _stored(row: CacheRow | None, elements: int, tokens: int, kv_dtype: KVDType, *, indexer: bool = False) -> int:
    """Return the bytes of some tokens. elements: number of elements per token, which `row` describes."""
    if is_plain(kv_dtype):
        return bytes_of(elements * tokens, kv_dtype)
    return tokens * ceil(token_bytes(row, kv_dtype, indexer=indexer))


def kv_cache(
    spec: ModelSpec,
    seq_len: int,
    *,
    batch: int = 1,
    kv_dtype: KVDType = "bf16",
    block_size: int = 16,
    layout: Layout | None = None,
) -> KVCache:
    """Compute the size of the cache on one GPU of a layout. Without a layout, one GPU stores the whole cache.

    Raises SpecError if a number is below 1.
    """
    if seq_len < 1 or batch < 1 or block_size < 1:
        raise SpecError(f"seq, batch and block size must be at least 1, not {seq_len}, {batch} and {block_size}")
    per_token = beyond_windows = reserved = 0
    blocks = -(-seq_len // block_size) * block_size
    whole = SequenceBytes()
    layers: dict[str, int] = {}
    layout = layout or Layout()
    for op in lower(spec, Workload.prefill(1), layout):
        cache = op.cache
        if cache is None:
            continue
        count = op.count
        own = sequence_bytes(cache, seq_len, kv_dtype, layout)
        whole = whole.plus(own, count)
        row = _stored(cache.row, cache.per_token, 1, kv_dtype)
        indexer = _stored(cache.indexer_row, cache.indexer_per_token, 1, kv_dtype, indexer=True)
        per_token += count * (row + indexer)
        beyond_windows += count * (indexer + (row if cache.span is None else 0))
        every = msgspec.structs.replace(cache, span=None)
        in_blocks = sequence_bytes(every, blocks, kv_dtype, layout)
        reserved += count * (in_blocks.growing + in_blocks.indexer)
        layers[op.layer] = layers.get(op.layer, 0) + count * (own.growing + own.state)
    return KVCache(
        bytes_per_token=per_token,
        bytes_per_token_beyond_windows=beyond_windows,
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
    """Return the model with another number of key-value heads, or None if no mixer can have that number.

    kind: "mha" gives one key-value head per query head, "gqa" gives `groups` key-value heads, and "mqa" gives one.

    Latent attention becomes ordinary attention with the widths of its expanded keys and values. The result is None if
    the model has no attention, or if the number of query heads is not divisible by `groups`.
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
