"""The check of pieces: it finds planted faults, and its sizes represent the timed ones."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.bench.correctness import check_setting, verdicts
from llmbench.bench.experiments.synthetic import heads
from llmbench.bench.extra_candidates import EXTRA_CANDIDATES, ExtraCandidate, binder_of, grouped
from llmbench.bench.pieces import PIECES, find_piece
from llmbench.bench.pieces.piece import Piece
from llmbench.bench.results.metrics import Line, MachineLimits
from llmbench.kernels.proof import accuracy
from llmbench.kernels.proof.accuracy import Verdict
from llmbench.measure.check_and_time import ADDRESSABLE_BYTES
from llmbench.model.implementations.interface import ExpertWeights, Seen
from llmbench.model.implementations.plain import STANDARD
from llmbench.model.layer_cache import RowShape, SlotCache
from llmbench.spec.catalog import load_bundled
from tests.bench.test_pieces import CPU, references, rows, setting, small


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flash` is torch's kernel for CPUs, as it is for users."""
    importlib.import_module("llmbench.model.implementations.kernels")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def with_wrong_gradient(x: Tensor | None, factor: float) -> Any:
    """x, with gradients multiplied by `factor`."""
    if x is None or not x.requires_grad:
        return x
    y = x.clone()
    y.register_hook(lambda grad: grad * factor)
    return y


def planted(monkeypatch: pytest.MonkeyPatch, **functions: Any) -> None:
    """Register a candidate `planted`: plain torch with these functions replaced."""
    monkeypatch.setitem(
        EXTRA_CANDIDATES,
        "planted",
        ExtraCandidate("", lambda: STANDARD._replace(name="planted", **functions)),
    )


def wrong(piece: Piece, at: Any) -> list[Verdict]:
    """The failed verdicts on `planted`."""
    return [verdict for verdict in verdicts(piece, at, "planted", binder_of("planted")) if not verdict.passed]


# Gradients of weights


def tripled_norm(x: Tensor, residual: Any, weight: Any, bias: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """A norm whose weight has three times its gradient."""
    return STANDARD.norm(x, residual, with_wrong_gradient(weight, 3.0), bias, norm)


def halved_attention(q: Tensor, seen: Seen, scores: Any) -> Tensor:
    """Attention whose gradients are halved."""
    out: Tensor = with_wrong_gradient(STANDARD.attend(q, seen, scores), 0.5)
    return out


def tripled_experts(x: Tensor, weights: Tensor, chosen: Tensor, experts: ExpertWeights, moe: Any) -> Tensor:
    """Experts whose matrices have three times their gradients."""
    return grouped.mixture(
        x, weights, chosen, ExpertWeights(*(with_wrong_gradient(weight, 3.0) for weight in experts)), moe
    )


@pytest.mark.parametrize("name", ["block", "model"])
def test_wrong_gradients_of_norms_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, norm=tripled_norm)
    tensors = [verdict.tensor for verdict in wrong(find_piece(name), setting(find_piece(name), direction="both"))]
    assert tensors
    assert all(tensor.endswith("norm.weight") for tensor in tensors)
    assert not wrong(find_piece(name), setting(find_piece(name)))  # the forward pass is right


@pytest.mark.parametrize(
    ("name", "functions", "says"),
    [
        ("block", {"norm": tripled_norm}, "d mixer_norm.weight: error 2"),
        ("model", {"norm": tripled_norm}, "d layers.0.mixer_norm.weight: error 2"),
        ("model", {"attend": halved_attention}, "v_proj.weight: error 5"),
        ("moe", {"experts": tripled_experts}, "d experts.gate_proj: error 2"),
    ],
)
def test_a_wrong_gradient_gets_no_time(name: str, functions: Any, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, **functions)
    for passed in ("backward", "both"):
        (row,) = rows(find_piece(name), setting(find_piece(name), direction=passed, seq_len=16), "planted")
        assert (row.status, row.measurement) == ("INCORRECT", None)
        assert any(says in check.fault() for check in row.checks)


# Windows and chunks, which a short check would not reach


def blind(q: Tensor, seen: Seen, scores: Any) -> Tensor:
    """Attention that ignores windows and chunks."""
    return STANDARD.attend(q, _Blind(seen), scores)


class _Blind:
    slots = None

    def __init__(self, seen: Seen) -> None:
        self.k, self.v = seen.k, seen.v
        self.mask = seen.mask._replace(window=None, chunk=None)


@pytest.mark.parametrize(
    ("span", "length"),
    [
        ({"sliding_window": 512}, 1024),
        ({"sliding_window": 1024}, 8192),
        ({"sliding_window": 4096}, 16384),
        ({"sliding_window": 1023}, 1024),
        ({"attention_chunk_size": 512}, 1024),
        ({"attention_chunk_size": 8192}, 16384),
    ],
)
def test_a_window_that_is_ignored_is_found(span: dict[str, int], length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, attend=blind)
    if length > 1024:  # replays of plain torch, which the short lengths test, take long here and only raise the budget
        monkeypatch.setattr(accuracy, "REPLAYS", 0)
    piece = find_piece("attention")
    at = setting(piece, small(mixer=heads(8, 4, 16, **span)), batch=1, seq_len=length)
    assert [verdict.tensor for verdict in wrong(piece, at)] == ["out"]


@pytest.mark.parametrize("name", ["block", "model"])
def test_a_window_of_a_later_layer_is_checked(name: str) -> None:
    spec = load_bundled("gemma3-1b")  # five layers with a window, then one without
    at = setting(find_piece(name), spec, batch=4, seq_len=2048)
    checked = check_setting(find_piece(name), at)
    assert (checked.batch, checked.seq_len) == (2, 2 * 512 + 1)
    mixers = [checked.spec.layers[name].mixer for name in checked.spec.order]
    assert [mixer.sliding_window for mixer in mixers] == ([512] if name == "block" else [512, None])  # type: ignore[union-attr]


def test_checks_are_as_small_as_possible() -> None:
    wide = load_bundled("mistral-7b-v0.1")  # 32 query heads, 8 key heads, a window of 4,096
    attention = check_setting(find_piece("attention"), setting(find_piece("attention"), wide, batch=4, seq_len=8192))
    mixer = attention.spec.layers[attention.spec.order[0]].mixer
    assert (attention.batch, attention.seq_len) == (2, 2049)
    assert (mixer.num_attention_heads, mixer.num_key_value_heads, mixer.sliding_window) == (8, 2, 1024)  # type: ignore[union-attr]
    short = check_setting(find_piece("attention"), setting(find_piece("attention"), wide, batch=1, seq_len=4096))
    assert (short.batch, short.seq_len) == (1, 256)  # a window of 4,096 hides none of 4,096 tokens
    norm = check_setting(find_piece("norm"), setting(find_piece("norm"), wide, seq_len=8192))
    assert norm.seq_len == 256  # its layer has a window, but a norm does not use it


@pytest.mark.parametrize(
    ("name", "kinds"), [("deepseek-v3", 2), ("qwen3-next-80b-a3b", 2), ("jamba-v0.1", 3), ("llama2-7b", 1)]
)
def test_a_model_is_checked_with_a_layer_of_each_kind(name: str, kinds: int) -> None:
    spec = check_setting(find_piece("model"), setting(find_piece("model"), load_bundled(name))).spec
    assert spec.num_hidden_layers == max(kinds, 2)
    assert len(set(spec.order)) == kinds


# The cache of a windowed layer


def seen_by(piece: Piece, at: Any) -> Seen:
    """The keys, values and mask that an implementation receives."""
    built, received = piece.build(at), []

    def attend(q: Tensor, seen: Seen, scores: Any) -> Tensor:
        received.append(seen)
        return q

    built.run(STANDARD._replace(attend=attend), **built.inputs)
    seen: Seen = received[0]
    return seen


@pytest.mark.parametrize(("span", "length"), [(16, 40), (16, 17), (16, 16), (16, 5), (16, 64)])
@pytest.mark.parametrize("kind", ["sliding_window", "attention_chunk_size"])
def test_a_cache_stores_what_a_models_cache_stores(kind: str, span: int, length: int) -> None:
    piece = find_piece("decode")
    at = setting(piece, small(mixer=heads(4, 2, 16, **{kind: span})), seq_len=length)
    seen = seen_by(piece, at)
    assert seen.slots is not None
    cache = SlotCache(2, min(span, length), RowShape(2, (16,), (16,)), ring=span < length, dtype=at.format, device=CPU)
    rows_of = torch.zeros(2, 2, length, 16)
    cache.fill(rows_of, rows_of, at.positions(), None)
    torch.testing.assert_close(seen.mask.keys, cache.token_positions())
    assert seen.slots.ring == cache.ring
    assert seen.k.shape == cache.gathered_keys(at.format).shape
    for row in rows(piece, at, "standard", "sdpa"):
        assert row.status == "ok", row.reason


@pytest.mark.parametrize("impl", ["standard", "flash"])
def test_the_need_of_a_windowed_cache_is_what_is_allocated(impl: str) -> None:
    piece = find_piece("decode")
    at = setting(piece, small(mixer=heads(8, 8, 64, sliding_window=128)), seq_len=2048)
    (row,) = rows(piece, at, impl)
    peak = Line(row, MachineLimits(references(), None)).peak_bytes
    assert peak is not None
    assert row.need_bytes is not None
    assert math.isclose(peak, row.need_bytes, rel_tol=0.02)


# Sizes beyond all memory


@pytest.mark.parametrize("name", PIECES)
def test_a_size_that_cannot_be_counted_is_oom(name: str) -> None:
    at = setting(find_piece(name), batch=2**31, seq_len=2**31)
    for row in rows(find_piece(name), at, "standard", "sdpa"):
        assert (row.status, row.measurement) == ("OOM", None)
        assert row.need_bytes is not None
        assert row.need_bytes > ADDRESSABLE_BYTES


# The reference


def exact_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention in fp64 throughout."""
    scores = (q @ k.mT) / math.sqrt(q.shape[-1])
    seen = torch.ones(scores.shape[-2:]).tril().bool()
    weights = scores.masked_fill(~seen, -math.inf).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


def test_the_reference_is_exact() -> None:
    built = find_piece("attention").build(setting(find_piece("attention"), small(mixer=heads(4, 4, 16))))
    q, k, v = (built.inputs[name].double() for name in "qkv")
    torch.testing.assert_close(built.run(STANDARD, q=q, k=k, v=v, sinks=None, slopes=None), exact_attention(q, k, v))
    loss = find_piece("loss").build(setting(find_piece("loss")))
    assert loss.run(STANDARD, x=loss.inputs["x"].double()).dtype == torch.float64  # type: ignore[union-attr]
    assert isinstance(loss.parameters(torch.float64)["weight"], Tensor)
