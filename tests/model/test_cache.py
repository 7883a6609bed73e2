"""Caches: prefill and decode equal one forward pass, for every kind of cache and attention. Blocks and their pool,
bytes against `kvcache`, errors of quantised rows."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from llmbench.errors import CannotRunError, LLMBenchError, UnknownNameError, UnsupportedError
from llmbench.model.cache import CACHE_KINDS, Cache
from llmbench.model.decoder import Decoder
from llmbench.model.implementations.interface import Given, Mask, Scores
from llmbench.model.implementations.plain import attend as standard
from llmbench.model.latent import LatentLayer, set_latent_form
from llmbench.model.layer_cache import RowShape, SlotCache
from llmbench.model.mixers import new_cache
from llmbench.model.storage import Storage, dequantise, quantise
from llmbench.sizing.kvcache import kv_cache
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.mixer import LatentAttention, branches
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Rope, RopeScaling

from . import small

EXACT = [name for name, kind in CACHE_KINDS.items() if kind.storage is None]
LENGTH = 18
STEPS = [6, 1, 1, 3, 1, 5, 1]
TIGHT = 2e-5


def new_cache_of(model: Decoder, batch: int, capacity: int = LENGTH, **options: Any) -> Cache:
    """An empty cache in fp32."""
    return new_cache(model.spec, batch, capacity, dtype=torch.float32, device="cpu", **options)


def assert_close(ours: Tensor, expected: Tensor, tolerance: float = TIGHT, of: str = "") -> None:
    """Check that the largest difference is at most `tolerance` times the largest expected number. A failure shows
    `of`."""
    assert torch.isfinite(ours).all(), of
    assert float((ours - expected).abs().max() / expected.abs().max()) <= tolerance, of


@torch.no_grad()
def in_steps(model: Decoder, tokens: Tensor, cache: Cache, steps: list[int]) -> Tensor:
    """Logits of tokens that are passed in steps of these lengths."""
    return torch.cat([model(piece, cache=cache) for piece in tokens.split(steps, dim=1)], dim=1)


@pytest.mark.parametrize("name", small.SPECS)
def test_steps_equal_one_forward(name: str) -> None:
    model = small.model_of(small.SPECS[name])
    tokens = small.prompt(2, LENGTH)
    with torch.no_grad():
        whole = model(tokens)
    for kind in EXACT:
        for steps in (STEPS, [1] * LENGTH):
            assert_close(in_steps(model, tokens, new_cache_of(model, 2, kind=kind), steps), whole, of=kind)


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("name", small.SPECS)
def test_sequences_of_different_lengths(name: str, kind: str) -> None:
    """Each row gives the logits of its sequence alone: after a padded prefill, after single steps, and after a padded
    step of several tokens, in which one row has none."""
    model = small.model_of(small.SPECS[name])
    rows = small.prompt(3, 2 * LENGTH)
    lengths = [0, 0, 0]
    cache = new_cache_of(model, 3, kind=kind)
    with torch.no_grad():
        whole = model(rows[:, :LENGTH])
        for new in ([7, 2, 4], [1, 1, 1], [3, 0, 5], [1, 1, 1], [1, 0, 1], [1, 1, 1], [2, 6, 1]):
            length = max(new)
            tokens = torch.full((3, length), 7)  # padding is a token like others
            for row, count in enumerate(new):
                tokens[row, :count] = rows[row, lengths[row] : lengths[row] + count]
            ragged = None if min(new) == length else torch.tensor(new)
            logits = model(tokens, cache=cache, lengths=ragged)
            for row, count in enumerate(new):
                if count:
                    assert_close(logits[row, :count], whole[row, lengths[row] : lengths[row] + count])
                lengths[row] += count
    assert cache.lengths.tolist() == lengths
    assert cache.longest == max(lengths)


@pytest.mark.parametrize("name", ["gqa", "window", "local and global", "mla", "chunks"])
@pytest.mark.parametrize("impl", ["sdpa", "flex", "flash"])
def test_implementations_equal_standard_over_a_cache(name: str, impl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`flash` is torch's kernel for CPUs here. tests/kernels/test_models.py has ours over caches."""
    if impl == "flash" and name == "mla":
        pytest.skip("torch's flash kernel for CPUs needs keys and values of one width")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    model = small.model_of(small.SPECS[name], impl=impl)
    tokens = small.prompt(2, LENGTH)
    with torch.no_grad():
        whole = small.model_of(small.SPECS[name])(tokens)
    assert_close(in_steps(model, tokens, new_cache_of(model, 2), STEPS), whole)


@pytest.mark.parametrize("name", [name for name in small.SPECS if name.startswith("mla")])
def test_absorbed_equals_expanded(name: str) -> None:
    model = small.model_of(small.SPECS[name])
    tokens = small.prompt(2, LENGTH)
    with torch.no_grad():
        set_latent_form(model, "expanded")
        whole = model(tokens)
        expanded = in_steps(model, tokens, new_cache_of(model, 2), STEPS)
        set_latent_form(model, "absorbed")
        assert_close(model(tokens), whole)
        assert_close(in_steps(model, tokens, new_cache_of(model, 2), STEPS), whole)
    assert_close(expanded, whole)


def test_one_new_token_with_a_cache_is_absorbed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.model_of(small.SPECS["mla"])
    seen: list[str] = []
    for form in ("_expanded", "_absorbed"):
        usual = getattr(LatentLayer, form)

        def noted(self: LatentLayer, *args: Any, usual: Any = usual, form: str = form) -> Tensor:
            seen.append(form)
            return usual(self, *args)

        monkeypatch.setattr(LatentLayer, form, noted)
    in_steps(model, small.prompt(1, 5), new_cache_of(model, 1), [3, 1, 1])
    assert seen == ["_expanded"] * 2 + ["_absorbed"] * 4
    seen.clear()
    model(small.prompt(1, 1))
    assert seen == ["_expanded"] * 2


@pytest.mark.parametrize("name", ["gqa", "local and global", "mla", "mla indexed", "sinks"])
def test_blocks_in_any_order_with_nan_in_unused_slots(name: str) -> None:
    model = small.model_of(small.SPECS[name])
    tokens = small.prompt(3, LENGTH)
    cache = new_cache_of(model, 3, kind="paged", block_size=4, num_blocks=23)
    table = cache.store.table
    assert table is not None
    order = torch.randperm(23, generator=torch.Generator().manual_seed(3)) + 1
    table.pool.unused = order.tolist()
    for layer in cache.layers:
        for state in layer.values():
            state.keys.data.fill_(math.nan)
            state.values.data.fill_(math.nan)
    with torch.no_grad():
        whole = model(tokens)
        assert_close(model(tokens[:, :5], cache=cache, lengths=torch.tensor([5, 1, 3]))[0], whole[0, :5])
        logits = model(tokens[:, 5:12], cache=cache, lengths=torch.tensor([7, 0, 0]))
        assert_close(logits[0], whole[0, 5:12])
        assert_close(model(tokens[:, 12:13], cache=cache)[0], whole[0, 12:13])
    assert [len(own) for own in table.owned] == [4, 1, 1]
    used = [block for own in table.owned for block in own]
    assert len(set(used)) == len(used)
    assert 0 not in used
    assert used[:2] != sorted(used[:2]) or used[2:] != sorted(used[2:])


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("name", ["local and global", "mla", "hybrid"])
def test_a_row_can_be_reused_for_another_sequence(name: str, kind: str) -> None:
    model = small.model_of(small.SPECS[name])
    tokens = small.prompt(3, LENGTH)
    cache = new_cache_of(model, 2, kind=kind)
    with torch.no_grad():
        whole = model(tokens)
        model(tokens[:2, :9], cache=cache)
        before = cache.nbytes
        cache.forget(1)
        assert cache.lengths.tolist() == [9, 0]
        assert (cache.nbytes < before) == (kind == "paged")
        logits = model(tokens[[0, 2], :6], cache=cache, lengths=torch.tensor([0, 6]))
        assert_close(logits[1], whole[2, :6])
        both = torch.stack((tokens[0, 9:10], tokens[2, 6:7]))
        assert_close(model(both, cache=cache)[:, 0], torch.stack((whole[0, 9], whole[2, 6])))


def test_a_pool_without_free_blocks_is_reported() -> None:
    model = small.model_of(small.SPECS["gqa"])
    cache = new_cache_of(model, 2, kind="paged", block_size=4, num_blocks=5)
    tokens = small.prompt(2, LENGTH)
    with torch.no_grad():
        model(tokens[:, :8], cache=cache)
        with pytest.raises(CannotRunError, match="2 blocks are needed, 1 of 5 are free"):
            model(tokens[:, 8:9], cache=cache)
        assert cache.lengths.tolist() == [8, 8]
        cache.forget(0)
        logits = model(tokens[:, 8:9], cache=cache, lengths=torch.tensor([0, 1]))
        assert_close(logits[1, 0], model(tokens)[1, 8])


@pytest.mark.parametrize("kind", CACHE_KINDS)
def test_more_tokens_than_the_capacity_are_refused(kind: str) -> None:
    model = small.model_of(small.SPECS["window"])
    cache = new_cache_of(model, 1, 4, kind=kind)
    with pytest.raises(CannotRunError, match="room for 4 tokens per sequence, but 5 are needed"):
        model(small.prompt(1, 5), cache=cache)


def test_refusals() -> None:
    model = small.model_of(small.SPECS["gqa"])
    with pytest.raises(UnknownNameError, match="unknown kind of cache `page`"):
        new_cache_of(model, 1, kind="page")
    with pytest.raises(UnsupportedError, match="bidirectional"):
        new_cache(small.small(small.gqa(causal=False)), 1, 4, dtype=torch.float32, device="cpu")


def scale_bytes(spec: ModelSpec, kind: str, tokens_of: Any) -> int:
    """Bytes of the scales of a quantised cache: one in fp32 for each segment of a row, head and token."""
    total = 0
    if CACHE_KINDS[kind].storage is None:
        return 0
    for name in spec.order:
        for mixer in branches(spec.layers[name].mixer):
            if isinstance(mixer, LatentAttention):
                indexed = mixer.indexer is not None and not mixer.indexer.shared
                total += 4 * (1 + (mixer.qk_rope_head_dim > 0) + indexed) * tokens_of(mixer.sliding_window)
            elif hasattr(mixer, "num_key_value_heads"):
                total += 4 * 2 * mixer.num_key_value_heads * tokens_of(mixer.span)
    return total


@pytest.mark.parametrize("name", small.SPECS)
def test_bytes_equal_the_sizing_table(name: str) -> None:
    """The table leaves out the scales of quantised rows. States are in fp32 here, and so are convolutions."""
    model = small.model_of(small.SPECS[name])
    for kind in CACHE_KINDS:
        check_bytes(model, kind)


def check_bytes(model: Decoder, kind: str) -> None:
    """Bytes of a cache of this kind, after a prompt."""
    spec = model.spec
    cache = new_cache_of(model, 2, kind=kind)
    model(small.prompt(2, LENGTH), cache=cache)
    chosen = CACHE_KINDS[kind]
    figures = kv_cache(spec, LENGTH, batch=2, kv_dtype=chosen.storage or "fp32")
    state = kv_cache(spec, LENGTH, batch=2, kv_dtype="fp32").state_bytes_per_sequence
    rows = figures.bytes_per_sequence + figures.indexer_bytes_per_sequence

    def tokens_of(span: int | None) -> int:
        if chosen.paged:
            return 32  # two blocks
        return min(LENGTH, span or LENGTH) if chosen.rolling else LENGTH

    if chosen.paged:
        rows = figures.reserved_bytes // 2 - figures.state_bytes_per_sequence
    elif not chosen.rolling:
        rows = figures.bytes_per_token * LENGTH
    assert cache.nbytes == 2 * (rows + state + scale_bytes(spec, kind, tokens_of)), kind


def test_bytes_of_bundled_models() -> None:
    """Caches of all bundled models that have one, in bf16, on meta."""
    tried = 0
    for name in bundled_models():
        spec = load_bundled(name)
        if spec.encoder is not None:
            continue
        try:
            cache = new_cache(spec, 2, 5000, dtype=torch.bfloat16, device="meta")
        except LLMBenchError:
            continue
        tried += 1
        assert cache.nbytes == kv_cache(spec, 5000, batch=2, kv_dtype="bf16").bytes_total, name
    assert tried > 100


@pytest.mark.parametrize("storage", ["int8", "fp8"])
@pytest.mark.parametrize("segments", [(16,), (12, 4)])
@pytest.mark.parametrize("size", [1e-6, 1.0, 3e4])
def test_quantised_rows_are_within_the_step_of_their_format(
    storage: Storage, segments: tuple[int, ...], size: float
) -> None:
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) * size
    x[:, 0] *= 100  # an outlier, which coarsens only its own segment
    x[7] = 0.0
    stored, scales = quantise(x, storage, segments)
    assert stored.element_size() == 1
    assert scales.shape == (50, len(segments))
    back = dequantise(stored, scales, storage, segments, torch.float32)
    largest = {"int8": 127.0, "fp8": 448.0}[storage]
    for piece, expected in zip(back.split(segments, -1), x.split(segments, -1), strict=True):
        step = expected.abs().amax(-1, keepdim=True) / largest
        bound = step / 2 if storage == "int8" else torch.maximum(expected.abs() * 2.0**-4, step * 2.0**-10)
        assert ((piece - expected).abs() <= bound * (1 + 1e-5)).all()
    assert (back[7] == 0).all()


@pytest.mark.parametrize("storage", ["int8", "fp8"])
def test_attention_over_quantised_rows_is_within_a_derived_bound(storage: Storage) -> None:
    """Let |Δk|, |Δv| be the formats' errors. A score moves by at most d = scale · max_t Σ|q||Δk|, so every weight by a
    factor within e^±2d, and the result by at most max|Δv| + (e^2d − 1) · max|v|."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 1, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 30, 16, generator=generator)
    positions = torch.arange(30).expand(2, -1)
    seen = {}
    for storage_kind in (None, storage):
        cache = SlotCache(2, 30, RowShape(2, (16,), (16,)), dtype=torch.float32, device="cpu", storage=storage_kind)
        cache.fill(k, v, positions, None)
        seen[storage_kind] = cache.gathered_keys(k.dtype), cache.gathered_values(v.dtype)
    mask = Mask(torch.full((2, 1), 29), cache.token_positions(), True, None, None, False)
    scores = Scores(16**-0.5)
    exact, rough = (standard(q, Given(*seen[storage_kind], mask), scores) for storage_kind in (None, storage))
    bounds = []
    for x in (k, v):
        step = x.abs().amax(-1, keepdim=True) / {"int8": 127.0, "fp8": 448.0}[storage]
        bounds.append((step / 2).expand_as(x) if storage == "int8" else torch.maximum(x.abs() / 16, step / 1024))
    moved = float((q.abs() @ bounds[0].repeat_interleave(2, 1).transpose(-1, -2)).max()) * scores.scale
    bound = float(bounds[1].max()) + math.expm1(2 * moved) * float(v.abs().max())
    difference = float((rough - exact).abs().max())
    assert 0 < difference <= bound
    assert difference < {"int8": 0.01, "fp8": 0.1}[storage]  # what is usual; the bound is for the worst case


@pytest.mark.parametrize("kind", [name for name, kind in CACHE_KINDS.items() if kind.storage])
@pytest.mark.parametrize(
    "name",
    ["gqa", "window", "local and global", "chunks", "sinks", "mla", "mla window", "mla indexed", "hybrid", "parallel"],
)
def test_models_over_quantised_caches_are_close(name: str, kind: str) -> None:
    model = small.model_of(small.SPECS[name])
    tokens = small.prompt(2, LENGTH)
    with torch.no_grad():
        whole = model(tokens)
    stepped = in_steps(model, tokens, new_cache_of(model, 2, kind=kind), STEPS)
    assert_close(stepped[:, :6], whole[:, :6])  # a prefill attends over its own rows as they are
    if name != "mla indexed":  # there another key may be chosen
        assert_close(stepped, whole, 0.06 if "int8" in kind else 0.25)


LONGER = {
    "dynamic": RopeScaling(kind="dynamic", factor=4.0, original_max_position_embeddings=16),
    "longrope": RopeScaling(
        kind="longrope",
        factor=4.0,
        original_max_position_embeddings=16,
        short_factor=(1.0, 1.1, 1.3, 1.6),
        long_factor=(1.5, 2.0, 3.0, 5.0),
    ),
}


@pytest.mark.parametrize("name", LONGER)
def test_cached_keys_are_refused_where_the_frequencies_change_with_length(name: str) -> None:
    """Up to the trained length, steps equal one pass. Past it, the cache and rows of different lengths are refused.
    Longrope changes once, so that a prompt past the trained length can be continued."""
    spec = small.small(small.gqa(), positions=Rope(scaling=LONGER[name]))
    model = small.model_of(msgspec.structs.replace(spec, max_position_embeddings=16))
    tokens = small.prompt(2, 24)
    with torch.no_grad():
        whole = model(tokens[:, :16])
    cache = new_cache_of(model, 2, 24)
    assert_close(in_steps(model, tokens[:, :16], cache, [10, 1, 5]), whole)
    with pytest.raises(CannotRunError, match=f"{name} scaling changes the RoPE frequencies"):
        model(tokens[:, 16:17], cache=cache)
    with pytest.raises(CannotRunError, match=f"{name} scaling changes the RoPE frequencies"):
        model(tokens, lengths=torch.tensor([8, 24]))
    cache = new_cache_of(model, 2, 24)
    with torch.no_grad():
        model(tokens[:, :20], cache=cache)
        if name == "longrope":
            assert_close(in_steps(model, tokens[:, 20:], cache, [1, 1, 2]), model(tokens)[:, 20:])
