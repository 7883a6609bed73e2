"""What a model keeps between steps: sums over the ops that have a cache."""

from __future__ import annotations

from typing import Literal

import msgspec

from llmbench.errors import SpecError
from llmbench.sizing.dtypes import DType, bytes_of
from llmbench.sizing.lower import lower
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.mixer import Attention, Mixer, Parallel
from llmbench.spec.model import ModelSpec

STATE_BYTES = 4
"""Recurrent states are kept in fp32, whatever the cache's format; convolution states in the cache's."""


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
    per_token = growing = state = indexer = cross = reserved = 0
    blocks = -(-seq_len // block_size) * block_size
    layers: dict[str, int] = {}
    for op in lower(spec, Workload.prefill(1, kv_dtype=kv_dtype), layout or Layout()):
        cache = op.cache
        if cache is None:
            continue
        count = op.count
        per_token += count * bytes_of(cache.per_token, kv_dtype)
        held = count * bytes_of(cache.per_token * min(seq_len, cache.span or seq_len), kv_dtype)
        growing += held
        fixed = count * (STATE_BYTES * cache.state + bytes_of(cache.conv_state, kv_dtype))
        state += fixed
        indexer += count * bytes_of(cache.indexer_per_token * seq_len, kv_dtype)
        cross += count * bytes_of(cache.cross_per_token * seq_len, kv_dtype)
        reserved += count * bytes_of((cache.per_token + cache.indexer_per_token) * blocks, kv_dtype)
        layers[op.layer] = layers.get(op.layer, 0) + held + fixed
    return KVCache(
        bytes_per_token=per_token,
        bytes_per_sequence=growing,
        state_bytes_per_sequence=state,
        indexer_bytes_per_sequence=indexer,
        cross_bytes_per_sequence=cross,
        bytes_total=batch * (growing + state + indexer + cross),
        reserved_bytes=batch * (reserved + state + cross),
        seq_len=seq_len,
        batch=batch,
        kv_dtype=kv_dtype,
        block_size=block_size,
        layers=layers,
    )


def as_heads(spec: ModelSpec, kind: Literal["mha", "gqa", "mqa"], *, groups: int = 8) -> ModelSpec | None:
    """The model as it would be with one key-value head a query head (mha), `groups` of them (gqa), or one (mqa).

    None where it has no attention of that family (MLA, state-space), or where `groups` does not divide the heads.
    """
    from msgspec.structs import replace

    changed = False

    def convert(mixer: Mixer | None) -> Mixer | None:
        nonlocal changed
        if isinstance(mixer, Parallel):
            branches = tuple(convert(branch) for branch in mixer.branches)
            return replace(mixer, branches=branches)
        if not isinstance(mixer, Attention):
            return mixer
        heads = mixer.num_attention_heads
        wanted = heads if kind == "mha" else 1 if kind == "mqa" else groups
        if heads % wanted:
            return mixer
        changed = True
        return replace(mixer, num_key_value_heads=wanted)

    layers = {name: replace(layer, mixer=convert(layer.mixer)) for name, layer in spec.layers.items()}
    return replace(spec, layers=layers) if changed else None
