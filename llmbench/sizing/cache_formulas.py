"""The formulas of the KV cache and of recurrent states, with numbers: one formula per op that has a cache."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

import msgspec

from llmbench.sizing.dtypes import STATE_DTYPE, DType, KVDType, bits_of, is_plain
from llmbench.sizing.formula import (
    Formula,
    branches_of,
    counted,
    numbers_of,
    plus,
    shared,
    short_names,
    times,
    with_texts,
)
from llmbench.sizing.kvcache import KVCache, sequence_bytes
from llmbench.sizing.lower import lower
from llmbench.sizing.lower.builder import share
from llmbench.sizing.op import Op
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.mixer import AttentionKind, CacheRow, MixerKind
from llmbench.spec.model import ModelSpec


def kv_cache_formulas(spec: ModelSpec, cache: KVCache) -> list[Formula]:
    """Return the formulas of a cache on one GPU: one per op, their sum, and the bytes that an engine reserves."""
    ops = [op for op in lower(spec, Workload.prefill(1)) if op.cache is not None]
    terms = cache_formulas(
        spec, [(op, op.count) for op in ops], cache.seq_len, cache.batch, cache.kv_dtype, layout=Layout()
    )
    if len(terms) > 1:
        terms.append(Formula(term="total", text=plus(*(counted(t.value) for t in terms)), value=cache.bytes_total))
    if cache.reserved_bytes != cache.bytes_total:
        terms.append(_reserved(ops, cache))
    return terms


def _reserved(ops: list[Op], cache: KVCache) -> Formula:
    """Return the formula of the bytes that an engine reserves. It stores whole blocks and ignores windows."""
    blocks = times(f"ceil({counted(cache.seq_len, 'tokens')} / {cache.block_size:,})", str(cache.block_size))
    tokens = -(-cache.seq_len // cache.block_size) * cache.block_size
    terms, fixed = [], 0
    for op in ops:
        assert op.cache is not None
        own = sequence_bytes(op.cache, cache.seq_len, cache.kv_dtype, Layout())
        fixed += op.count * (own.state + own.cross)
        elements = op.cache.per_token + op.cache.indexer_per_token
        if elements:
            whole = sequence_bytes(msgspec.structs.replace(op.cache, span=None), tokens, cache.kv_dtype, Layout())
            size = whole.growing + whole.indexer
            per_layer = _stored(counted(elements, "elements"), elements, blocks, tokens, cache.kv_dtype, size)
            terms.append(times(counted(op.count, "layers"), per_layer))
    every = plus(*terms, counted(fixed, "bytes of states and cross-attention") if fixed else "")
    text = times(counted(cache.batch, "sequences"), every if len(terms) + bool(fixed) < 2 else f"({every})")
    return Formula(term="reserved in whole blocks, without windows", text=text, value=cache.reserved_bytes)


def cache_formulas(
    spec: ModelSpec, ops: Iterable[tuple[Op, int]], seq_len: int, batch: int, kv_dtype: KVDType, *, layout: Layout
) -> list[Formula]:
    """Return the formulas of the caches of some ops, for all sequences. The sum of their values is the whole cache.

    ops: each op with the number of layers that contain it.
    """
    formulas = []
    for op, count in ops:
        cache = op.cache
        if cache is None:
            continue
        own = sequence_bytes(cache, seq_len, kv_dtype, layout)
        tokens = share(seq_len, layout.cp)
        visible = tokens if cache.span is None else share(min(seq_len, cache.span), layout.cp)
        layers, sequences = counted(count, "layers"), counted(batch, "sequences")
        source_len = cache.cross_tokens or seq_len
        sources, read = share(source_len, layout.cp), shared(source_len, layout.cp, "tokens")
        kept, every = (shared(length, layout.cp, "tokens") for length in (min(seq_len, cache.span or seq_len), seq_len))
        rows = _Rows(spec, op, layout)
        per_layer = (
            (
                "keys and values",
                _stored(rows.row(cache.per_token), cache.per_token, kept, visible, kv_dtype, own.growing),
                own.growing,
            ),
            (
                "indexer keys",
                _stored(
                    rows.row(cache.indexer_per_token), cache.indexer_per_token, every, tokens, kv_dtype, own.indexer
                ),
                own.indexer,
            ),
            (
                "keys and values of cross-attention",
                _stored(rows.row(cache.cross_per_token), cache.cross_per_token, read, sources, kv_dtype, own.cross),
                own.cross,
            ),
            (
                "recurrent state",
                _bytes(rows.scan(cache.state), cache.state, "", 1, cache.state_dtype or STATE_DTYPE),
                cache.state_bytes,
            ),
            (
                "inputs of the convolution",
                _bytes(
                    rows.conv(cache.conv_state), cache.conv_state, "", 1, kv_dtype if is_plain(kv_dtype) else "bf16"
                ),
                own.state - cache.state_bytes,
            ),
        )
        for what, text, size in per_layer:
            if size:
                formulas.append(
                    Formula(term=f"{what}, {op.layer}", text=times(layers, text, sequences), value=count * batch * size)
                )
    return formulas


def _stored(elements_text: str, elements: int, tokens_text: str, tokens: int, kv_dtype: KVDType, size: int) -> str:
    """Return the formula of the bytes of some tokens. size: the value. An engine's format has bytes per token."""
    if is_plain(kv_dtype):
        return _bytes(elements_text, elements, tokens_text, tokens, kv_dtype)
    return times(f"{size // tokens:,} bytes", tokens_text)


def _bytes(elements_text: str, elements: int, tokens_text: str, tokens: int, dtype: DType) -> str:
    """Return the formula of the bytes of `elements` per token for some tokens, rounded up to whole bytes."""
    text = times(elements_text, tokens_text, counted(bits_of(dtype) / 8 if bits_of(dtype) % 8 else bits_of(dtype) // 8))
    text += " byte" if bits_of(dtype) == 8 else " bytes"
    return f"ceil({text})" if elements * tokens * bits_of(dtype) % 8 else text


class _Rows:
    """The formulas of the elements that one op stores in its cache, on one GPU of a layout."""

    def __init__(self, spec: ModelSpec, op: Op, layout: Layout) -> None:
        layer = spec.layers[op.layer]
        self.spec, self.op, self.tp = spec, op, layout.tp
        mixers: list[MixerKind] = [*branches_of(op, layer)]
        if ".cross_attention." in op.name and layer.cross_attention is not None:
            mixers = [layer.cross_attention]
        self.mixers = mixers

    def row(self, elements: int) -> str:
        """Return the formula of the elements per token."""
        for mixer in self.mixers:
            rows = [*mixer.cache_rows, *([mixer.indexer_row] if mixer.indexer_row is not None else [])]
            if isinstance(mixer, AttentionKind):
                rows.append(mixer.cache_row)
            for row in rows:
                local = row._replace(heads=share(row.heads, min(self.tp, row.heads)))
                if local.elements == elements:
                    return self._row(row, mixer)
        return counted(elements, "elements")

    def _row(self, row: CacheRow, mixer: MixerKind) -> str:
        texts = {name: counted(value, name) for name, value in short_names(_numbers(mixer)).items()}
        if row.heads > 1 and "kv_heads" in texts:
            texts["kv_heads"] = shared(row.heads, min(self.tp, row.heads), "kv_heads")
        text = with_texts(row.formula, texts)
        return f"ceil({text})" if row.tokens_per_row > 1 else text

    def scan(self, elements: int) -> str:
        """Return the formula of the elements of the recurrent state."""
        shapes = [mixer.fixed_state.scan for mixer in self.mixers if mixer.fixed_state is not None]
        return self._shape([shape for shape in shapes if shape is not None], elements)

    def conv(self, elements: int) -> str:
        """Return the formula of the stored inputs of a short convolution, or of RWKV's token shift."""
        states = [mixer.fixed_state for mixer in self.mixers if mixer.fixed_state is not None]
        shapes = [state.conv for state in states if state.conv is not None]
        for inputs, channels in shapes:
            if inputs * share(channels, self.tp) == elements:
                return times(counted(inputs, "inputs"), shared(channels, self.tp, "channels"))
        return self._shape([(state.stream_tokens, self.spec.hidden_size) for state in states], elements)

    def _shape(self, shapes: list[tuple[int, ...]], elements: int) -> str:
        for shape in shapes:
            product = times(*map(counted, shape))
            if prod(shape) == elements:
                return product
            if share(prod(shape), self.tp) == elements:
                whole = prod(shape) % self.tp == 0
                return f"({product} / {self.tp})" if whole else f"ceil({product} / {self.tp})"
        return counted(elements, "elements")


def _numbers(mixer: MixerKind) -> Mapping[str, int]:
    values = numbers_of(mixer)
    if isinstance(mixer, AttentionKind):
        values |= {"num_key_value_heads": mixer.num_key_value_heads, "v_head_dim": mixer.value_dim}
    return values | ({"index_head_dim": mixer.indexer.head_dim} if mixer.indexer is not None else {})
