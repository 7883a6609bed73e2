"""Decode kernels on the model's own caches, their FLOPs beside the sizing table, and refused arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from llmbench.errors import CannotRunError
from llmbench.kernels.decoding import attention as gqa
from llmbench.kernels.decoding import latent as mla
from llmbench.kernels.decoding.caches import count_visible
from llmbench.kernels.decoding.merge import split_count
from llmbench.kernels.kernel import Random
from llmbench.model.implementations.interface import Given, Mask, Scores
from llmbench.model.implementations.plain import attend as standard
from llmbench.model.layer_cache import RowShape, SlotCache
from llmbench.model.paged import BlockPool, BlockTable, PagedCache
from llmbench.model.storage import Storage
from llmbench.sizing.lower.pairs import visible_pairs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = (21, 7)


def assert_close(out: Tensor, reference: Tensor) -> None:
    """Assert equality within the precision of fp32, or of tf32 on a GPU."""
    tolerance = 2e-2 if out.is_cuda else 1e-4
    torch.testing.assert_close(out, reference, rtol=tolerance, atol=tolerance)


def fill(cache: Any, heads: int, *widths: int) -> None:
    """Append random tokens to both sequences, one at a time."""
    torch.manual_seed(0)
    for position in range(max(LENGTHS)):
        at = torch.full((2, 1), position, device=DEVICE)
        valid = at < torch.tensor(LENGTHS, device=DEVICE)[:, None]
        new = [torch.randn(2, heads, 1, width, device=DEVICE) for width in widths]
        cache.fill(*new, at, valid)


def expected(cache: Any, q: Tensor, window: int | None, scale: float, latent: int = 0) -> Tensor:
    """The model's attention in plain torch on the gathered cache."""
    lengths = torch.tensor(LENGTHS, device=DEVICE)
    k, v = cache.gathered_keys(q.dtype), cache.gathered_values(q.dtype)
    queries = lengths[:, None] - q.shape[2] + torch.arange(q.shape[2], device=DEVICE)
    mask = Mask(queries, cache.token_positions(), True, window, None, False)
    return standard(q, Given(k, k[..., :latent] if latent else v, mask), Scores(scale))


@pytest.mark.parametrize("storage", [None, "int8", "fp8"])
@pytest.mark.parametrize("ring", [False, True])
def test_slots_of_the_models_cache(ring: bool, storage: Storage | None) -> None:
    """A dense cache or a ring is read in place: it has strides, and a last slot for dropped tokens."""
    window = 8 if ring else None
    cache = SlotCache(
        2, 8 if ring else 30, RowShape(2, (16,), (16,)), dtype=torch.float32, device=DEVICE, ring=ring, storage=storage
    )
    fill(cache, 2, 16, 16)
    q = torch.randn(2, 4, 1, 16, device=DEVICE)
    options: dict[str, Any] = {"ring": ring, "window": window}
    slots = slice(0, cache.capacity)
    k, v = cache.keys.data[:, :, slots], cache.values.data[:, :, slots]
    if storage == "fp8":
        k, v = k.view(torch.float8_e4m3fn), v.view(torch.float8_e4m3fn)
    if cache.keys.scales is not None and cache.values.scales is not None:
        options |= {"k_scales": cache.keys.scales[:, :, slots, 0], "v_scales": cache.values.scales[:, :, slots, 0]}
    reference = expected(cache, q, window, 0.25)
    out = gqa.decode_attention(q, k, v, torch.tensor(LENGTHS, device=DEVICE), **options)
    assert_close(out, reference)
    if storage is None:  # the cache also stores positions
        at = torch.tensor(LENGTHS, device=DEVICE)[:, None] - 1
        out = gqa.decode_attention(q, k, v, key_positions=cache.positions[:, slots], query_positions=at, window=window)
        assert_close(out, reference)


def paged(shape: RowShape) -> PagedCache:
    table = BlockTable(2, 8, BlockPool(14), block_size=4, device=DEVICE)
    table.reserve(LENGTHS)
    return PagedCache(table, shape, dtype=torch.float32, device=DEVICE)


def test_pages_of_the_models_cache() -> None:
    cache = paged(RowShape(2, (16,), (24,)))
    fill(cache, 2, 16, 24)
    q = torch.randn(2, 4, 3, 16, device=DEVICE)
    out = gqa.decode_attention(q, cache.keys.data, cache.values.data, cache.lengths, table=cache.table.used, splits=3)
    assert_close(out, expected(cache, q, None, 0.25))


def test_latents_of_the_models_cache() -> None:
    """Latents and keys are views of one buffer. A table of single tokens, like that of an indexer, gives the same."""
    cache = paged(RowShape(1, (32, 16), (0,)))
    fill(cache, 1, 48, 0)
    q = torch.randn(2, 5, 1, 48, device=DEVICE)
    q_latent, q_rope = q[..., :32], q[..., 32:]
    latent, rope = cache.keys.data[:, :, 0, :32], cache.keys.data[:, :, 0, 32:]
    out = mla.mla_decode(q_latent, q_rope, latent, rope, cache.lengths, table=cache.table.used, scale=0.2)
    reference = expected(cache, q, None, 0.2, latent=32)
    assert_close(out, reference)

    tokens = torch.stack([torch.arange(max(LENGTHS), device=DEVICE)] * 2)
    pages = cache.table.used.long().gather(1, tokens // 4) * 4 + tokens % 4  # rows of the pool, in an arbitrary order
    order = torch.arange(LENGTHS[0] - 1, -1, -1, device=DEVICE)
    pages[0] = pages[0][order]
    latent, rope = (part.flatten(0, 1)[:, None] for part in (latent, rope))
    out = mla.mla_decode(q_latent, q_rope, latent, rope, cache.lengths, table=pages.int(), causal=False, scale=0.2)
    assert_close(out, reference)


@pytest.mark.parametrize("window", [None, 5])
def test_flops_are_those_of_the_sizing_table(window: int | None) -> None:
    """The sizing table has 2 · (d_qk + d_v) · heads FLOPs per pair of visible_pairs."""
    lengths, tokens = (37, 12), 3
    pairs = sum(visible_pairs(tokens, length, window=window) for length in lengths)
    assert count_visible(lengths, tokens, window, None)[0] == pairs
    case = gqa.Case(lengths, 4, 2, 16, value_dim=24, queries=tokens, window=window or 0)
    assert gqa.cost(case, torch.float16).flops == 2 * (16 + 24) * 4 * pairs
    latent = mla.Case(lengths, 4, 32, 16, queries=tokens, window=window or 0)
    assert mla.cost(latent, torch.float16).flops == 2 * (2 * 32 + 16) * 4 * pairs
    assert count_visible((20,), 1, None, 8)[0] == visible_pairs(1, 20, chunk=8)


def test_flops_on_fake_tensors_count_every_slot() -> None:
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        q, cache = torch.empty(2, 4, 1, 16), torch.empty(2, 2, 32, 16)
        gqa.decode_attention(q, cache, cache, torch.empty(2, dtype=torch.int32))
    assert counter.get_total_flops() == 2 * 32 * 4 * 2 * 32


def test_it_compiles_without_graph_breaks() -> None:
    case = gqa.KERNEL.cases[0]
    inputs = gqa.KERNEL.inputs(case, Random(0, torch.float32, DEVICE))
    compiled = torch.compile(gqa.decode_attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**inputs), gqa.decode_attention(**inputs))


def test_splits_fill_the_device() -> None:
    """One long sequence is split until its programs fill the device; many sequences are not split."""
    assert split_count(8, 131072, 64, 132) * 8 in range(100, 133)
    assert split_count(256, 4096, 64, 264) == 1
    assert split_count(1, 40, 64, 132) == 1


Q, K = torch.zeros(2, 4, 1, 16), torch.zeros(2, 2, 8, 16)
N = torch.tensor((3, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": Q[:, :3]}, "must be a multiple of the number of KV heads"),
        ({"q": Q[..., :8]}, "do not match"),
        ({"q": Q.half()}, "queries are"),
        ({"lengths": None}, "positions of the queries"),
        ({"lengths": N[:1]}, "lengths"),
        ({"window": 0}, "window"),
        ({"ring": True, "window": 9}, "too small"),
        ({"sinks": torch.zeros(3)}, "sinks"),
        ({"k": K.to(torch.int8), "v": K.to(torch.int8)}, "needs scales"),
        ({"q": Q.expand(2, 4, 1, 16).repeat(1, 1, 1, 20), "k": K.repeat(1, 1, 1, 20)}, "at most 256"),
    ],
)
def test_invalid_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, CannotRunError), match=message):
        gqa.decode_attention(**({"q": Q, "k": K, "v": K, "lengths": N} | change))


@pytest.mark.parametrize(("width", "cached", "message"), [(600, 600, "up to 512"), (64, 32, "do not match")])
def test_invalid_latents_are_refused(width: int, cached: int, message: str) -> None:
    q, latent, rope = torch.zeros(1, 2, 1, width), torch.zeros(1, 8, cached), torch.zeros(1, 8, 64)
    with pytest.raises(ValueError, match=message):
        mla.mla_decode(q, torch.zeros(1, 2, 1, 64), latent, rope, N[:1], scale=1.0)
