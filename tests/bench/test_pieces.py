"""Pieces and their candidates: checked before they are timed, with metrics that agree with the measurement."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.bench.candidates import piece_group, same_as_standard
from llmbench.bench.experiments.experiment import Pace, run
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.bench.extra_candidates import EXTRA_CANDIDATES, ExtraCandidate
from llmbench.bench.extra_candidates.grouped import grouped_experts
from llmbench.bench.pieces import PIECES, blocks, find_piece
from llmbench.bench.pieces.blocks import STEP, decoder_of
from llmbench.bench.pieces.piece import Piece, Setting
from llmbench.bench.pieces.pointwise import ADD_NORM
from llmbench.bench.profile import candidate_names
from llmbench.bench.results.metrics import METRICS, Line, MachineLimits
from llmbench.kernels.proof.accuracy import compare
from llmbench.measure.clock import CpuClock
from llmbench.measure.energy import Energy
from llmbench.measure.measurement import Measurement
from llmbench.measure.memory import LiveTensors
from llmbench.measure.reference import Limits, ReferenceMeasurement, ReferenceMeasurements
from llmbench.measure.results import Row
from llmbench.model.implementations.interface import ExpertWeights, Traits
from llmbench.model.implementations.plain import STANDARD
from llmbench.model.mixers import new_cache
from llmbench.model.positions import tables_of
from llmbench.model.residual import Residual
from llmbench.model.step import Step
from llmbench.report.fields import record
from llmbench.sizing.work import Pass
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Gated, MoE
from llmbench.spec.mixer import LatentAttention
from llmbench.spec.model import ModelSpec, Norm
from llmbench.spec.position import Alibi

CPU = torch.device("cpu")
PACE = Pace(budget_s=0.02, warmup_s=0.0, min_samples=2, max_samples=4)
LATENT = LatentAttention(num_attention_heads=2, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16)


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """`flash` is torch's kernel for CPUs, as it is for users. The kernels are imported first, as conftest needs it."""
    importlib.import_module("llmbench.model.implementations.kernels")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


def references(matmul_s: float = 1e-3) -> ReferenceMeasurements:
    """1 TFLOP/s by default, 100 GB/s copied, 50 GB/s read."""

    def reference(work: int, seconds: float) -> ReferenceMeasurement:
        return ReferenceMeasurement(
            description="", work=work, measurement=Measurement(samples_s=(seconds,), clock="cpu")
        )

    return ReferenceMeasurements(
        matmul=reference(10**9, matmul_s),
        copy=reference(10**9, 1e-2),
        read=reference(10**9, 2e-2),
        launch=reference(1000, 5e-3),
    )


def small(**more: Any) -> ModelSpec:
    """A layer that has every piece."""
    parts: dict[str, Any] = {"mixer": heads(4, 2, 16), "ffn": Gated(intermediate_size=96)}
    return model_of("small", 64, **(parts | more))


SPECS: dict[str, ModelSpec] = {
    "mla": small(mixer=LATENT),
    "moe": small(ffn=MoE(num_experts=4, num_experts_per_tok=2, intermediate_size=32)),
}


def setting(piece: Piece, spec: ModelSpec | None = None, /, **more: Any) -> Setting:
    """A tiny setting on the CPU."""
    defaults: dict[str, Any] = {"batch": 2, "seq_len": 24, "dtype": "fp32", "device": CPU}
    return Setting(spec=piece.reduce(spec or SPECS.get(piece.name) or small()), **(defaults | more))


def rows(piece: Piece, at: Setting, *names: str) -> list[Row]:
    """The rows of a group of these implementations, in their order."""
    group = piece_group(piece, at, names, case={}, pace=PACE)
    by_name = {row.implementation: row for row in run([group], clock=CpuClock(), references=references())}
    return [by_name[name] for name in names]


def wrapped(function: Any) -> Any:
    """Another function that computes the same."""
    return lambda *args, **options: function(*args, **options)


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> str:
    """A candidate that computes everything as plain torch does, with functions of its own."""
    own = {name: wrapped(function) for name, function in STANDARD._asdict().items() if callable(function)}
    monkeypatch.setitem(
        EXTRA_CANDIDATES,
        "again",
        ExtraCandidate("", lambda: STANDARD._replace(name="again", loss=from_all_logits, **own)),
    )
    return "again"


def from_all_logits(x: Tensor, weight: Tensor, bias: Any, targets: Tensor, scale: float, soft_cap: Any) -> Tensor:
    """The loss of `small`'s head."""
    assert (bias, scale, soft_cap) == (None, 1.0, None)
    return torch.nn.functional.cross_entropy(x @ weight.T, targets)


@pytest.mark.parametrize("passed", ["forward", "backward", "both"])
@pytest.mark.parametrize("name", PIECES)
def test_every_piece_is_correct_and_has_all_metrics(name: str, passed: Pass, again: str) -> None:
    piece = find_piece(name)
    if piece.phase == "decode" and passed != "forward":
        pytest.skip("a cache has no backward pass")
    for row in rows(piece, setting(piece, direction=passed), "standard", again):
        assert row.status == "ok", row.reason
        assert row.work_bytes
        assert row.predicted_s
        assert row.need_bytes
        assert row.memory is not None
        assert (row.implementation == "standard") == (not row.checks)
        assert all(check.passed for check in row.checks)
        gradients = [check.tensor for check in row.checks if check.tensor.startswith("d")]
        assert bool(gradients) == (passed != "forward" and row.implementation != "standard")


@dataclass(frozen=True, kw_only=True)
class WithTensors(Setting):
    """A setting whose random values are given tensors, one per seed."""

    tensors: Mapping[int, Tensor]

    def normal(self, *shape: int, seed: int = 0, dtype: torch.dtype | None = None) -> Tensor:
        assert self.tensors[seed].shape == shape
        return self.tensors[seed]


def whole_pass(at: Setting, layer: Any, tables: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One pass of a layer over all tokens: its result, and the keys and values that its cache receives."""
    cache, handed = new_cache(at.spec, at.batch, at.seq_len, dtype=x.dtype, device=CPU), []
    for layer_cache in cache.layers[0].values():
        layer_cache.fill = lambda *args: handed.append(args)
    step = Step(at.positions(), None, True, tables, STANDARD)
    stream, _ = layer(Residual(x), step, cache.layers[0], None)
    ((keys, values, *_),) = handed
    return stream.whole(), keys, values


MIXERS = (
    heads(4, 2, 16),
    heads(4, 4, 16, sinks=True),
    heads(4, 1, 16, sliding_window=8),
    heads(4, 2, 16, sliding_window=64),
)


@pytest.mark.parametrize(
    ("mixer", "positions"), [(mixer, kind) for mixer in MIXERS for kind in (None, Alibi())] + [(LATENT, None)]
)
@torch.no_grad()
def test_a_step_equals_the_last_token_of_a_pass(mixer: Any, positions: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache has the keys and values of that pass. The old contents of the newest token's slot do not matter."""
    at = setting(STEP, small(mixer=mixer, positions=positions), seq_len=40)
    model, version = decoder_of(at)
    monkeypatch.setattr(blocks, "decoder_of", lambda _: (model, version))
    tables = tables_of(model.rotations, at.positions(), at.seq_len)
    x = at.normal(at.batch, at.seq_len, 64)
    plain, keys, values = whole_pass(at, version(x.dtype).layers[0], tables, x)
    exact, _, _ = whole_pass(at, version(torch.float64).layers[0], tables, x.double())
    keys[:, :, -1], values[:, :, -1] = 100.0, 100.0
    tensors = {0: x[:, -1:], 1: keys, 2: values}
    built = STEP.build(WithTensors(tensors=tensors, **{field.name: getattr(at, field.name) for field in fields(at)}))
    first, again = (built.run(STANDARD, **built.inputs) for _ in range(2))
    assert isinstance(first, Tensor)
    assert torch.equal(first, again)  # it only overwrites its own slot
    verdict = compare("out", first, plain[:, -1:], exact[:, -1:])
    assert verdict.passed, verdict


def test_steps_of_latents_and_sums_with_norms(again: str) -> None:
    assert [row.status for row in rows(STEP, setting(STEP, SPECS["mla"]), "standard", "sdpa")] == ["ok", "ok"]
    for norm in (Norm(), Norm(kind="layernorm", bias=True)):
        at = setting(ADD_NORM, small(norm=norm), direction="both")
        assert [row.status for row in rows(ADD_NORM, at, "standard", again)] == ["ok", "ok"]


SAME = {
    "norm": ("sdpa", "sdpa-cudnn", "flex", "flash", "grouped", "rope-fused"),
    "rope": ("sdpa", "flex", "flash", "grouped"),
    "glu": ("sdpa", "flash", "rope-fused"),
    "attention": ("grouped",),
    "mla": ("grouped",),
    "moe": ("sdpa", "flash", "rope-fused"),
    "loss": ("sdpa", "flash", "grouped"),
    "block": ("grouped",),  # its feed-forward is no mixture
}


@pytest.mark.parametrize(("name", "impl"), [(name, impl) for name, impls in SAME.items() for impl in impls])
def test_an_implementation_that_equals_standard_is_no_candidate(name: str, impl: str) -> None:
    (row,) = rows(find_piece(name), setting(find_piece(name)), impl)
    assert (row.status, row.checks, row.measurement) == ("n/a", (), None)
    assert row.reason == f"{impl} computes {name} exactly as standard does"


def test_the_functions_of_a_piece_are_found_in_every_layer() -> None:
    piece = find_piece("model")
    assert not same_as_standard(
        piece, setting(piece, load_bundled("deepseek-v2-lite")), "grouped"
    )  # mixtures follow a dense layer
    hybrid = load_bundled("jamba-v0.1")  # a state space layer first, then some attention
    assert not same_as_standard(piece, setting(piece, hybrid, seq_len=4096), "sdpa")
    assert same_as_standard(find_piece("block"), setting(find_piece("block"), hybrid), "sdpa")


def test_a_default_that_equals_standard_is_left_out() -> None:
    piece = find_piece("block")
    assert candidate_names(piece, None, setting(piece)) == ["flash", "standard"]
    spaces = setting(piece, load_bundled("jamba-v0.1"))
    assert candidate_names(piece, None, spaces) == ["standard"]
    assert candidate_names(piece, "flash", spaces) == ["flash", "standard"]  # its row is n/a


def test_torchs_grouped_products_compute_the_same_mixture() -> None:
    piece = find_piece("moe")
    plain, grouped = rows(piece, setting(piece, seq_len=64), "standard", "grouped")
    assert (plain.status, grouped.status, grouped.reason) == ("ok", "ok", None)
    assert grouped.checks


def test_grouped_products_allocate_no_table_of_choices_by_experts() -> None:
    """1,024 choices among 1,024 experts: a table of them would be larger than all other tensors of the mixture."""
    t, k, D, experts = 256, 4, 16, 1024
    chosen = torch.randn(t, experts).topk(k).indices
    up, down = torch.randn(experts, D, D), torch.randn(experts, D, D)
    x, weights = torch.randn(t, D), torch.full((t, k), 1 / k)
    matrices = ExpertWeights(None, up, down, None, None, None)
    with LiveTensors() as live:
        out = grouped_experts(x, weights, chosen, matrices, "relu")
    expected = torch.einsum("tkf,tkdf->td", torch.relu(torch.einsum("td,tkfd->tkf", x, up[chosen])), down[chosen]) / k
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert live.peak_bytes < 8 * t * k * D * 4


@pytest.mark.parametrize("more", [{"zero_experts": 2}, {"capacity_factor": 1.0}, {"expert_capacity": 4}])
def test_grouped_products_refuse_choices_that_no_expert_computes(more: dict[str, Any]) -> None:
    """The result rows of these choices would stay unwritten."""
    moe = MoE(num_experts=4, num_experts_per_tok=2, intermediate_size=32, **more)
    (row,) = rows(find_piece("moe"), setting(find_piece("moe"), small(ffn=moe)), "grouped")
    assert (row.status, row.reason) == ("n/a", "grouped supports no zero experts and no expert capacity")


@pytest.mark.parametrize("name", ["attention", "decode"])
def test_slopes_are_computed_before_the_clock_starts(name: str) -> None:
    built = find_piece(name).build(setting(find_piece(name), small(positions=Alibi())))
    received = []

    def attend(q: Tensor, seen: Any, scores: Any) -> Tensor:
        received.append(scores.slopes)
        return q

    for _ in range(2):
        built.run(STANDARD._replace(attend=attend), **built.inputs)
    assert received[0] is received[1] is built.inputs["slopes"]
    torch.testing.assert_close(received[0], torch.tensor([2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]))


# Planted faults


def wrong_scale(q: Tensor, seen: Any, scores: Any) -> Tensor:
    """Attention with a scale that is 1% too large."""
    return STANDARD.attend(q, seen, scores._replace(scale=scores.scale * 1.01))


def greedy(q: Tensor, seen: Any, scores: Any) -> Tensor:
    """Attention that allocates more memory than there is."""
    torch.empty(2**50, dtype=torch.uint8)
    return STANDARD.attend(q, seen, scores)


@pytest.mark.parametrize(
    ("attend", "status", "says"),
    [(wrong_scale, "INCORRECT", "out: error"), (greedy, "OOM", "can't allocate memory")],
)
def test_a_wrong_or_greedy_kernel_is_a_row_without_a_time(
    attend: Any, status: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        EXTRA_CANDIDATES,
        "planted",
        ExtraCandidate("", lambda: STANDARD._replace(name="planted", traits=Traits(), attend=attend)),
    )
    piece = find_piece("attention")
    at = setting(piece)
    plain, planted, right = rows(piece, at, "standard", "planted", "sdpa")
    assert (planted.status, planted.measurement) == (status, None)
    assert says in str(planted.reason)
    assert planted.need_bytes == right.need_bytes  # by the op table, neither materialises scores
    assert plain.need_bytes is not None
    assert right.need_bytes is not None
    assert plain.need_bytes > right.need_bytes > 0
    assert (plain.status, right.status) == ("ok", "ok")


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(q: Tensor, seen: Any, scores: Any) -> Tensor:
        out = STANDARD.attend(q, seen, scores)
        return out.detach() + 0.9 * (out - out.detach())

    monkeypatch.setitem(
        EXTRA_CANDIDATES,
        "planted",
        ExtraCandidate("", lambda: STANDARD._replace(name="planted", traits=Traits(), attend=attend)),
    )
    piece = find_piece("attention")
    assert rows(piece, setting(piece), "planted")[0].status == "ok"  # the forward pass is right
    (row,) = rows(piece, setting(piece, direction="both"), "planted")
    assert row.status == "INCORRECT"
    assert "dq" in str(row.reason)


# Metrics


@pytest.mark.parametrize("impl", ["standard", "flash"])
@pytest.mark.parametrize("passed", ["forward", "backward", "both"])
def test_the_analytic_need_is_what_attention_allocates(impl: str, passed: Pass) -> None:
    """Inputs and everything that torch allocates, compared with the op table. The table does not count the mask, which
    is one byte per pair for all heads."""
    piece = find_piece("attention")
    at = setting(piece, small(mixer=heads(8, 8, 32)), seq_len=512, batch=1, direction=passed)
    (row,) = rows(piece, at, impl)
    peak = Line(row, MachineLimits(references(), None)).peak_bytes
    assert peak is not None
    assert row.need_bytes is not None
    tolerance = 0.02 if passed == "forward" else 0.15
    assert math.isclose(peak, row.need_bytes, rel_tol=tolerance)


def test_metrics_of_a_row() -> None:
    measured = Measurement(samples_s=(0.002, 0.002), clock="cpu")
    row = Row(
        experiment="x",
        case={},
        implementation="a",
        status="ok",
        measurement=measured,
        work_flops=10**9,
        work_bytes=10**7,
        predicted_s=0.001,
        need_bytes=7,
        energy=Energy(joules=6.0, calls=3, seconds=1.0),
        extra={"tokens": 8},
    )
    slow = Row(
        experiment="x",
        case={},
        implementation="b",
        status="ok",
        measurement=Measurement(samples_s=(0.006, 0.004), clock="cpu"),
    )
    values = Line(row, MachineLimits(references(), Limits(2e12, 1e12)), slow)
    assert values.share_of_limit == pytest.approx(0.5)  # 1 ms of products at 1 TFLOP/s, in 2 ms
    assert values.share_of_datasheet == pytest.approx(0.25)
    assert values.prediction_error == pytest.approx(-0.5)
    assert values.speedup == pytest.approx(2.5)  # pair by pair: 3 and 2
    assert (values.speedup_p10, values.speedup_p90) == pytest.approx((2.1, 2.9))
    assert (values.p10_s, values.p90_s, values.iqr_s, values.n) == pytest.approx((0.002, 0.002, 0.0, 2))
    earlier = MachineLimits(
        references(9.0), None, {row.key: references()}
    )  # its session had other reference measurements
    assert Line(row, earlier).share_of_limit == pytest.approx(0.5)
    assert values.tokens_per_s == pytest.approx(4000)
    assert (values.joules_per_call, values.joules_per_token) == (2.0, 0.25)
    assert (values.peak_bytes, values.need_bytes) == (None, 7)
    lost = Row(experiment="x", case={}, implementation="c", status="OOM", reason="no room", need_bytes=9)
    known = record(METRICS, Line(lost, MachineLimits(references(), None), slow))
    assert {name: value for name, value in known.items() if value is not None} == {"need_bytes": 9}
