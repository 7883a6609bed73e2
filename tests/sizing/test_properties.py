"""Properties of every model that a spec can describe."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from llmbench.errors import LayoutError
from llmbench.sizing.flops import count_flops
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.lower import lower
from llmbench.sizing.lower.pairs import compressed_pairs, visible_pairs
from llmbench.sizing.memory import inference_memory
from llmbench.sizing.op import Op
from llmbench.sizing.params import ONE_TOKEN, count_parameters
from llmbench.sizing.stages import stages
from llmbench.sizing.training import training_memory
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.ffn import MoE
from llmbench.spec.mixer import Attention, branches
from llmbench.spec.model import ModelSpec

from . import strategies

common = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
lengths = st.integers(1, 64)
any_model = strategies.models(encoder=None)
decoders = strategies.models()


def longer(spec: ModelSpec) -> ModelSpec:
    """The model with its layers twice over."""
    return msgspec.structs.replace(spec, pattern=f"2*({spec.pattern})")


# Parameters


@common
@given(any_model, st.sampled_from((2, 4)), st.sampled_from((1, 2, 4)), st.booleans())
def test_parameters_are_the_sum_of_the_ops_and_of_the_shards(spec: ModelSpec, ep: int, tp: int, sp: bool) -> None:
    """A drawn model is expensive, so one is used for all sums."""
    check_sums(spec)
    check_shards(spec, Layout(tp=tp, sp=sp and tp > 1))
    check_expert_parallel_shards(spec, ep, min(tp, 2))


def check_sums(spec: ModelSpec) -> None:
    """Totals are sums over ops, over components and over layers."""
    counts = count_parameters(spec)
    ops = lower(spec, ONE_TOKEN)
    instances = [op for op in ops for _ in op.names()]
    assert counts.total == sum(op.parameters for op in instances)
    assert counts.total == sum(counts.components.values())
    assert counts.active <= counts.total
    assert counts.active_no_embeddings <= counts.active_no_input_embedding
    experts = any(isinstance(layer.ffn, MoE) for layer in spec.layers.values())
    assert experts or spec.encoder is not None or counts.active == counts.total
    outside = sum(op.count * op.parameters for op in ops if not op.layer)
    in_layers = sum(counts.layers[name] for name in spec.order)
    in_encoder = sum(counts.layers.get(f"encoder.{name}", 0) for name in (spec.encoder.order if spec.encoder else ()))
    first_only = _first_layer_only(ops)
    assert outside + in_layers + in_encoder - first_only == counts.total


def _first_layer_only(ops: list[Op]) -> int:
    """A relative-bias table stands in one layer of a kind, and `layers` speaks of that one."""
    tables = [op for op in ops if op.name.endswith("relative_bias")]
    kinds = {
        (op.stack, op.layer): max(o.count for o in ops if (o.stack, o.layer) == (op.stack, op.layer)) for op in tables
    }
    return sum((kinds[op.stack, op.layer] - op.count) * op.parameters for op in tables)


# Shards


def matrix_elements(op: Op) -> int:
    """Elements of an op's parameters that are matrices (a tied head has none of its own)."""
    if op.matrix is None:
        return 0
    copies, rows, columns = op.matrix
    return min(op.parameters, copies * rows * columns) if op.parameters >= copies * rows * columns else 0


def check_shards(spec: ModelSpec, layout: Layout) -> None:
    """Shares of each op sum to the whole. A bias behind a product that was split over its inputs is whole on
    every GPU, because it is added once, to the sum."""
    for whole, part in zip(lower(spec, ONE_TOKEN), lower(spec, ONE_TOKEN, layout), strict=True):
        assert whole.name == part.name
        if part.shards == 1:
            assert (part.parameters, part.buffers) == (whole.parameters, whole.buffers)
            continue
        assert part.buffers * part.shards == whole.buffers
        assert matrix_elements(part) * part.shards == matrix_elements(whole), part.name
        rest, whole_rest = (op.parameters - matrix_elements(op) for op in (part, whole))
        of_experts = layout.ep if part.component == "experts" else 1
        split_inputs = part.matrix is not None and whole.matrix is not None and part.matrix[1] < whole.matrix[1]
        assert rest * (of_experts if split_inputs else part.shards) == whole_rest, part.name


def check_expert_parallel_shards(spec: ModelSpec, ep: int, tp: int) -> None:
    """Shares of the experts sum to the whole. A model without experts is refused."""
    layout = Layout(tp=tp, ep=ep, dp=ep)
    if not spec.is_moe:
        with pytest.raises(LayoutError):
            lower(spec, ONE_TOKEN, layout)
        return
    check_shards(spec, layout)
    whole = sum(op.count * op.parameters for op in lower(spec, ONE_TOKEN) if op.component == "experts")
    part = sum(
        op.count * op.parameters for op in lower(spec, ONE_TOKEN, Layout(ep=ep, dp=ep)) if op.component == "experts"
    )
    assert part * ep == whole


@common
@given(any_model, st.integers(1, 4), st.integers(1, 3))
def test_stages_have_every_op_once(spec: ModelSpec, pp: int, interleave: int) -> None:
    total_layers = spec.num_hidden_layers + (len(spec.encoder.order) if spec.encoder else 0)
    pp = min(pp, total_layers)
    interleave = min(interleave, total_layers // pp) if pp > 1 else 1
    ops = lower(spec, ONE_TOKEN)
    cut = stages(spec, ops, Layout(pp=pp, interleave=interleave))
    assert [stage.index for stage in cut] == list(range(pp))
    assert all(len(stage.chunks) == interleave for stage in cut)
    placed = Counter((op.stack, op.layer, op.name) for stage in cut for op in stage.ops)
    wanted: Counter[tuple[str, str, str]] = Counter()
    for op in ops:
        wanted[op.stack, op.layer, op.name] += op.count
    assert placed == wanted
    sizes = [len(chunk.layers) for stage in cut for chunk in stage.chunks]
    assert max(sizes) - min(sizes) <= 1
    # a tied head that stands on another stage than the embedding has a copy of the table
    copy = sum(op.matmul_elements for op in ops if op.tied) if pp > 1 else 0
    assert sum(op.parameters for stage in cut for op in stage.ops) == count_parameters(spec).total + copy


# Growth


@common
@given(any_model, lengths, st.integers(1, 4), st.sampled_from(("prefill", "decode", "train")))
def test_flops_and_cache_grow(spec: ModelSpec, seq: int, batch: int, phase: str) -> None:
    check_that_flops_grow(spec, seq, batch, phase if phase != "decode" or spec.decodes else "prefill")
    check_that_the_cache_grows(spec, seq, batch)


def check_that_flops_grow(spec: ModelSpec, seq: int, batch: int, phase: str) -> None:
    """More tokens, sequences or layers need no less work."""
    make = getattr(Workload, phase)
    here = count_flops(spec, make(seq, batch))
    assert here.total == here.matmul + here.attention + here.recurrent == sum(here.components.values())
    if phase != "decode" or not has_chunks(spec):  # a token that opens a chunk sees only itself
        assert count_flops(spec, make(seq + 1, batch)).total >= here.total
    assert count_flops(spec, make(seq, 2 * batch)).total == 2 * here.total
    assert count_flops(longer(spec), make(seq, batch)).total >= here.total
    full = count_flops(spec, make(seq, batch, masked_pairs=True))
    assert full.total >= here.total
    if phase == "train":
        assert here.total == 3 * count_flops(spec, Workload.prefill(seq, batch)).total


def has_chunks(spec: ModelSpec) -> bool:
    """Whether any layer sees only its own chunk."""
    mixers = [mixer for layer in spec.layers.values() for mixer in branches(layer.mixer)]
    return any(isinstance(mixer, Attention) and mixer.attention_chunk_size is not None for mixer in mixers)


def check_that_the_cache_grows(spec: ModelSpec, seq: int, batch: int) -> None:
    """Its parts sum up, and more tokens, sequences or layers have no smaller cache."""
    here = kv_cache(spec, seq, batch=batch)
    apart = here.state_bytes_per_sequence + here.indexer_bytes_per_sequence + here.cross_bytes_per_sequence
    assert here.bytes_total == batch * (here.bytes_per_sequence + apart)
    assert here.reserved_bytes >= here.bytes_total
    more = kv_cache(spec, seq + 1, batch=batch)
    assert more.bytes_total >= here.bytes_total
    assert more.state_bytes_per_sequence == here.state_bytes_per_sequence
    assert kv_cache(spec, seq, batch=batch + 1).bytes_total >= here.bytes_total
    assert kv_cache(longer(spec), seq, batch=batch).bytes_total == 2 * here.bytes_total


@settings(common, max_examples=60)
@given(any_model, lengths, st.integers(1, 4), st.sampled_from(("none", "selective", "every-second", "full")))
def test_memory_grows(spec: ModelSpec, seq: int, batch: int, recompute: str) -> None:
    check_that_training_memory_grows(spec, seq, batch, recompute)
    check_that_serving_memory_grows(spec, seq, batch)


def check_that_training_memory_grows(spec: ModelSpec, seq: int, batch: int, recompute: str) -> None:
    """Its parts sum up, and more tokens, sequences or layers need no less."""
    here = training_memory(spec, seq, micro_batch=batch, recompute=recompute)
    assert here.peak_bytes == sum(here.parts_bytes.values())
    assert all(size >= 0 for size in here.parts_bytes.values())
    assert training_memory(spec, seq + 1, micro_batch=batch, recompute=recompute).peak_bytes >= here.peak_bytes
    assert training_memory(spec, seq, micro_batch=batch + 1, recompute=recompute).peak_bytes >= here.peak_bytes
    assert training_memory(longer(spec), seq, micro_batch=batch, recompute=recompute).peak_bytes >= here.peak_bytes
    assert training_memory(spec, seq, micro_batch=batch).peak_bytes >= here.peak_bytes


def check_that_serving_memory_grows(spec: ModelSpec, seq: int, batch: int) -> None:
    """Its parts sum up, and more tokens, sequences or layers need no less."""
    here = inference_memory(spec, seq, batch=batch)
    assert here.peak_bytes == sum(here.parts_bytes.values())
    assert inference_memory(spec, seq + 1, batch=batch).peak_bytes >= here.peak_bytes
    assert inference_memory(spec, seq, batch=batch + 1).peak_bytes >= here.peak_bytes
    assert inference_memory(longer(spec), seq, batch=batch).peak_bytes >= here.peak_bytes


# Prefill and decode are one function


@common
@given(decoders, lengths, st.integers(1, 3))
def test_one_more_token_is_a_decoding_step(spec: ModelSpec, seq: int, batch: int) -> None:
    before, after = (count_flops(spec, Workload.prefill(n, batch)) for n in (seq, seq + 1))
    step = count_flops(spec, Workload.decode(seq, batch, absorbed_mla=False))
    assert after.total - before.total == step.total
    assert after.attention - before.attention == step.attention
    assert after.recurrent - before.recurrent == step.recurrent


# Cache and windows


def spans(spec: ModelSpec) -> list[int | None]:
    """The span of each cache row of each kind of layer."""
    return [row.span for mixer in spec.mixers for row in mixer.cache_rows]


@common
@given(decoders, lengths)
def test_cache_below_and_beyond_windows(spec: ModelSpec, seq: int) -> None:
    windows = spans(spec)
    narrowest = min((w for w in windows if w is not None), default=seq)
    short = min(seq, narrowest)
    cache = kv_cache(spec, short)
    assert cache.bytes_per_sequence + cache.indexer_bytes_per_sequence == short * cache.bytes_per_token
    if windows and None not in windows:
        widest = max(w for w in windows if w is not None)
        full = kv_cache(spec, widest).bytes_per_sequence
        assert kv_cache(spec, widest + seq).bytes_per_sequence == full
    if not windows:
        assert cache.bytes_per_token == 0


# Pairs


def visible(query: int, key: int, *, causal: bool, window: int | None, chunk: int | None) -> bool:
    """The mask itself, for one query and one key."""
    if not causal:
        return window is None or abs(query - key) <= window // 2
    if key > query or (window is not None and query - key >= window):
        return False
    return chunk is None or query // chunk == key // chunk


@settings(common, max_examples=400)
@given(
    st.integers(1, 40),
    st.integers(0, 40),
    st.booleans(),
    st.sampled_from(("none", "window", "chunk")),
    st.integers(1, 30),
)
@example(1, 0, True, "window", 1)
@example(5, 3, False, "window", 4)
@example(8, 8, True, "chunk", 8)
def test_pairs_by_brute_force(new: int, cached: int, causal: bool, limit: str, span: int) -> None:
    assume(causal or limit != "chunk")
    window, chunk = (span if limit == "window" else None), (span if limit == "chunk" else None)
    length = new + cached
    by_hand = sum(
        visible(query, key, causal=causal, window=window, chunk=chunk)
        for query in range(cached, length)
        for key in range(length)
    )
    assert visible_pairs(new, length, causal=causal, window=window, chunk=chunk) == by_hand
    assert visible_pairs(new, length, causal=causal, window=window, chunk=chunk, masked_too=True) == new * length


@settings(common, max_examples=300)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 12), st.one_of(st.none(), st.integers(1, 8)))
def test_compressed_pairs_by_brute_force(new: int, cached: int, rate: int, top_k: int | None) -> None:
    length = new + cached
    by_hand = 0
    for query in range(cached, length):
        complete = sum(entry_end <= query for entry_end in range(rate - 1, length, rate))
        by_hand += complete if top_k is None else min(complete, top_k)
    assert compressed_pairs(new, length, rate=rate, top_k=top_k) == by_hand


@pytest.mark.parametrize("seq", [1, 4096, 2**31])
def test_long_sequences_are_counted_at_once(seq: int) -> None:
    assert visible_pairs(seq, seq) == seq * (seq + 1) // 2
    assert visible_pairs(seq, seq, window=min(seq, 100)) <= 100 * seq
