"""Mixtures of experts beyond their cases: the sort, what the model computes, tiles, compilation, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from llmbench.kernels import launching
from llmbench.kernels.experts.grouped import grouped_matmul
from llmbench.kernels.experts.grouped import reference as grouped_reference
from llmbench.kernels.experts.mixture import KERNEL, Case, moe, reference
from llmbench.kernels.experts.routing import moe_routing
from llmbench.kernels.experts.sorting import rows_a_tile, sort_by_expert, tile_limit, tiles_of
from llmbench.kernels.kernel import Random
from llmbench.kernels.proof.check import compare
from llmbench.model.ffn import ExpertsLayer, RouterLayer
from llmbench.model.implementations import implementation
from llmbench.sizing.lower import lower
from llmbench.sizing.workload import Workload
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import MoE, Router

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs(case: Case, dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Any]:
    return KERNEL.inputs(case, Random(seed, dtype, DEVICE))


def chosen(tokens: int, experts: int, k: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, experts, generator=generator).topk(k).indices.to(DEVICE)


@pytest.mark.parametrize(
    ("tokens", "experts", "k", "beyond"),
    [(1, 3, 1, 0), (30, 5, 3, 0), (700, 40, 2, 7), (3, 300, 6, 0), (2100, 4, 4, 1)],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_sort_is_stable_and_its_tiles_cover_every_row_once(
    tokens: int, experts: int, k: int, beyond: int, dtype: torch.dtype
) -> None:
    choices = chosen(tokens, experts, k)
    experts -= beyond
    tile = rows_a_tile(choices.numel(), experts)
    with launching.poisoned():
        order, offsets, tiles = sort_by_expert(choices.to(dtype), experts, tile)
        again = tiles_of(offsets, int(offsets[-1]), tile)
    flat = choices.flatten()
    real = int((flat < experts).sum())
    assert offsets.tolist() == [int((flat < e).sum()) for e in range(experts + 1)]
    assert order[:real].tolist() == flat.argsort(stable=True)[:real].tolist()
    assert tiles.shape == (2, tile_limit(flat.numel(), experts, tile))
    covered = [
        row
        for expert, first in tiles.T.tolist()
        if expert >= 0
        for row in range(first, min(first + tile, int(offsets[expert + 1])))
        if int(offsets[expert]) <= row
    ]
    assert covered == list(range(real))
    found = tiles[:, tiles[0] >= 0]
    assert torch.equal(again[:, again[0] >= 0], found)
    assert torch.equal(tiles[0] >= 0, torch.arange(tiles.shape[1], device=DEVICE) < found.shape[1])  # none between


@pytest.mark.parametrize(
    ("experts", "k", "router"),
    [
        (8, 2, Router()),
        (8, 2, Router(normalize=True, scale=2.0)),
        (8, 3, Router(scores="softmax_topk")),
        (12, 4, Router(scores="softmax", n_group=4, topk_group=2)),
        (12, 4, Router(scores="sigmoid", correction="buffer", normalize=True, scale=2.5, n_group=3, topk_group=2)),
        (6, 1, Router(scores="sigmoid")),
    ],
)
def test_routing_is_the_models(experts: int, k: int, router: Router) -> None:
    layer = RouterLayer(16, MoE(num_experts=experts, num_experts_per_tok=k, intermediate_size=8, router=router))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for held in (layer.weight, layer.correction):
            if held is not None:
                held.copy_(torch.randn(held.shape, generator=generator) * 0.3)
    layer = layer.to(DEVICE)
    logits, weights, which = layer(torch.randn(40, 16, generator=generator).to(DEVICE), implementation("standard"))
    found, picked = moe_routing(
        logits.detach(),
        k,
        layer.correction,
        scores=router.scores,
        normalize=router.normalize,
        scale=router.scale,
        n_group=router.n_group,
        topk_group=router.topk_group,
    )
    everywhere = torch.zeros_like(logits)
    torch.testing.assert_close(everywhere.scatter(1, picked, found), everywhere.scatter(1, which, weights.detach()))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("zero_experts", [0, 3])
def test_experts_are_the_models(gated: bool, zero_experts: int) -> None:
    """A mixture with and without gates and biases, and with experts that compute nothing."""
    spec = MoE(
        num_experts=4,
        num_experts_per_tok=3,
        intermediate_size=20,
        gated=gated,
        bias=True,
        activation="silu" if gated else "gelu",
        zero_experts=zero_experts,
    )
    layer = ExpertsLayer(24, spec).to(DEVICE)
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    x, weights = torch.randn(15, 24, generator=generator).to(DEVICE), torch.rand(15, 3, generator=generator).to(DEVICE)
    which = chosen(15, 4 + zero_experts, 3)
    out = layer(x, weights, which, implementation("standard"))
    biases = layer.gate_bias, layer.up_bias, layer.down_bias
    matrices = layer.gate_proj, layer.up_proj, layer.down_proj
    ours = moe(x, weights, which, *matrices, *biases, activation=spec.activation)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if DEVICE.type == "cuda" else {}  # tf32
    torch.testing.assert_close(ours, out, **tolerance)
    parameters = list(layer.parameters())
    for mine, its in zip(
        torch.autograd.grad(ours.square().sum(), parameters),
        torch.autograd.grad(out.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, **tolerance)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(("tokens", "tile"), [(1, 16), (24, 32), (40, 64), (80, 128)])
def test_every_height_of_tiles(tokens: int, tile: int, index: int) -> None:
    """Each with the configuration that ships and with the next. 96 columns: a full tile and a part of one."""
    given = inputs(Case(tokens, 72, 96, 2 if tokens > 1 else 5, 1), torch.bfloat16)
    assert rows_a_tile(tokens, 2) == tile
    names = "gated_forward", "grouped_product"
    with launching.poisoned(), launching.preferring(dict.fromkeys(names, index)):
        found = moe(**given)
    exact = {key: of.double() if isinstance(of, Tensor) and of.is_floating_point() else of for key, of in given.items()}
    assert compare("out", found, reference(**given), reference(**exact)).passed


def test_results_repeat_and_idle_experts_have_zero_gradients() -> None:
    given = inputs(Case(20, 24, 16, 6, 2, used=3))
    matrices = [given[name].requires_grad_() for name in ("gate", "up", "down")]
    first, second = (torch.autograd.grad(moe(**given).sum(), matrices) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
        assert one[:3].abs().sum() > 0
        assert not one[3:].any()


def test_nothing_is_kept_where_nothing_is_learned() -> None:
    """Neither projections nor anything else of R · F: forward alone returns the result only."""
    given = inputs(Case(6, 16, 8, 2, 1))
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda of: kept.append(of.numel()) or of, lambda of: of):
        moe(**given)
        assert not kept
        moe(**given | {"up": given["up"].requires_grad_()})
    assert kept.count(6 * 8) == 2


def test_no_tokens_and_no_rows() -> None:
    given = inputs(Case(4, 16, 8, 2, 1))
    empty = {name: of[:0] if name in ("x", "weights", "chosen") else of for name, of in given.items()}
    leaves = [empty[name].requires_grad_() for name in ("up", "down")]
    out = moe(**empty)
    assert out.shape == (0, 16)
    assert all(not grad.any() for grad in torch.autograd.grad(out.sum(), leaves))
    weight = torch.randn(3, 8, 16, device=DEVICE)
    assert grouped_matmul(given["x"][:0], weight, torch.zeros(4, dtype=torch.int32, device=DEVICE)).shape == (0, 8)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "gpt-oss-20b"])
def test_flops_are_those_of_the_sizing_table(name: str) -> None:
    """What `cost` says of one layer's experts is what the Ops of that layer say, forward and backward."""
    spec = load_bundled(name)
    ffn = next(layer.ffn for layer in spec.layers.values() if isinstance(layer.ffn, MoE))
    ops = [op for op in lower(spec, Workload.train(512)) if "experts" in op.name and op.matrix and 0 in op.layers]
    assert len(ops) == 3
    case = Case(512, spec.hidden_size, ffn.intermediate_size, ffn.num_experts, ffn.num_experts_per_tok)
    cost = KERNEL.cost(case, torch.bfloat16)
    assert sum(op.forward_flops for op in ops) == cost.flops
    assert sum(op.backward_flops for op in ops) == cost.backward_flops


def test_compilation_sees_through() -> None:
    """One graph from logits to the result, and its backward."""
    case = Case(6, 16, 8, 3, 2)
    given = inputs(case)
    logits = torch.randn(6, 3, device=DEVICE)
    given = {name: of for name, of in given.items() if name not in ("weights", "chosen")}

    def whole(logits: Tensor, **held: Any) -> Tensor:
        return moe(weights=(routed := moe_routing(logits, 2, normalize=True))[0], chosen=routed[1], **held)

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    leaves = [logits.requires_grad_(), *(given[name].requires_grad_() for name in ("x", "gate", "up", "down"))]
    eager = torch.autograd.grad(whole(logits, **given).sum(), leaves)
    found = torch.autograd.grad(compiled(logits, **given).sum(), leaves)
    for one, other in zip(found, eager, strict=True):
        torch.testing.assert_close(one, other)


def test_what_does_not_fit_is_refused() -> None:
    given = inputs(Case(4, 16, 8, 2, 1))
    wrong: dict[str, Any] = {
        "x": given["x"][:, :8],
        "gate": given["gate"].bfloat16(),
        "down": given["up"],
        "up_bias": torch.zeros(2, 16, device=DEVICE),
        "weights": given["weights"][:2],
        "chosen": given["chosen"].to(torch.uint8),
    }
    for name, of in wrong.items():
        with pytest.raises(ValueError, match="needed"):
            moe(**given | {name: of})
    with pytest.raises(ValueError, match="swiglu_oai"):
        moe(**given | {"gate": None, "activation": "swiglu_oai"})
    with pytest.raises(KeyError):
        moe(**given | {"activation": "tanh"})
    logits = torch.randn(3, 6, device=DEVICE)
    for options in ({"k": 7}, {"k": 2, "n_group": 4}, {"k": 2, "scores": "softmax_topk", "n_group": 2}):
        with pytest.raises(ValueError, match=r"experts|softmax_topk"):
            moe_routing(logits, **options)
    with pytest.raises(ValueError, match="fp32"):
        moe_routing(logits.bfloat16(), 2)
    with pytest.raises(KeyError):
        moe_routing(logits, 2, scores="sparsemixer")
    offsets = torch.tensor([0, 4], dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="needed"):
        grouped_matmul(given["x"], given["gate"], offsets)
    x = torch.ones(4, 16, device=DEVICE)
    torch.testing.assert_close(
        grouped_matmul(x, given["gate"][:1], offsets),
        grouped_reference(x, given["gate"][:1], offsets),
        rtol=1e-2,
        atol=1e-2,
    )
