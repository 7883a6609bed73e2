"""What a model keeps between steps: sums over the ops that have a cache."""

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
    """The cache of `batch` sequences of `seq_len` tokens; bytes, rounded up to whole bytes a layer and sequence.

    bytes_per_token: what one more token adds while every layer still grows. bytes_per_sequence: at seq_len, windows
    respected; without what follows. state: recurrent and convolution states, of any length. indexer: DSA's keys.
    cross: keys and values of encoder tokens, seq_len of them. bytes_total: batch × all four.
    reserved_bytes: what an engine without hybrid support sets aside: whole blocks, every layer at full length.
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


class Held(msgspec.Struct, frozen=True):
    """Bytes that one sequence keeps: what grows with it, fixed states, indexer keys, cross-attention."""

    growing: int = 0
    state: int = 0
    indexer: int = 0
    cross: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return self.growing + self.state + self.indexer + self.cross

    def plus(self, other: Held, times: int) -> Held:
        """The sum with `times` others."""
        return Held(
            self.growing + times * other.growing,
            self.state + times * other.state,
            self.indexer + times * other.indexer,
            self.cross + times * other.cross,
        )


def held_bytes(cache: Cache, seq_len: int, kv_dtype: DType, layout: Layout) -> Held:
    """What one op's cache holds of a sequence on one GPU: context parallelism splits the tokens, not the states."""
    tokens = share(seq_len, layout.cp)
    visible = tokens if cache.span is None else share(min(seq_len, cache.span), layout.cp)
    return Held(
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
    """The cache of one GPU (the whole model without a layout)."""
    if seq_len < 1 or batch < 1 or block_size < 1:
        raise SpecError("seq, batch and block size must be at least 1")
    per_token = reserved = 0
    blocks = -(-seq_len // block_size) * block_size
    whole = Held()
    layers: dict[str, int] = {}
    layout = layout or Layout()
    for op in lower(spec, Workload.prefill(1, kv_dtype=kv_dtype), layout):
        cache = op.cache
        if cache is None:
            continue
        count = op.count
        each = held_bytes(cache, seq_len, kv_dtype, layout)
        whole = whole.plus(each, count)
        per_token += count * bytes_of(cache.per_token, kv_dtype)
        reserved += count * bytes_of((cache.per_token + cache.indexer_per_token) * share(blocks, layout.cp), kv_dtype)
        layers[op.layer] = layers.get(op.layer, 0) + count * (each.growing + each.state)
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
    """The model with one key-value head per query head (mha), with `groups` of them (gqa), or with one (mqa).

    Latent attention becomes ordinary attention with its expanded widths. None if no mixer can change: the model has no
    attention (state-space), or `groups` does not divide the heads.
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
