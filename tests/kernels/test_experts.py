"""Mixtures of experts beyond their cases: the sort, the model's own results, tiles, compilation, refusals."""

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
from llmbench.kernels.experts.sorting import max_tiles, rows_per_tile, sort_by_expert, tiles_from_offsets
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
    ("tokens", "experts", "k", "zero_experts"),
    [(1, 3, 1, 0), (30, 5, 3, 0), (700, 40, 2, 7), (3, 300, 6, 0), (2100, 4, 4, 1)],
)
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_the_sort_is_stable_and_its_tiles_cover_every_row_once(
    tokens: int, experts: int, k: int, zero_experts: int, dtype: torch.dtype
) -> None:
    choices = chosen(tokens, experts, k)
    experts -= zero_experts
    tile = rows_per_tile(choices.numel(), experts)
    with launching.poisoned():
        order, offsets, tiles = sort_by_expert(choices.to(dtype), experts, tile)
        again = tiles_from_offsets(offsets, int(offsets[-1]), tile)
    flat = choices.flatten()
    real = int((flat < experts).sum())
    assert offsets.tolist() == [int((flat < e).sum()) for e in range(experts + 1)]
    assert order[:real].tolist() == flat.argsort(stable=True)[:real].tolist()
    assert tiles.shape == (2, max_tiles(flat.numel(), experts, tile))
    covered = [
        row
        for expert, first in tiles.T.tolist()
        if expert >= 0
        for row in range(first, min(first + tile, int(offsets[expert + 1])))
        if int(offsets[expert]) <= row
    ]
    assert covered == list(range(real))
    used = tiles[:, tiles[0] >= 0]
    assert torch.equal(again[:, again[0] >= 0], used)
    exists = torch.arange(tiles.shape[1], device=DEVICE) < used.shape[1]
    assert torch.equal(tiles[0] >= 0, exists)  # tiles that exist come first


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
def test_routing_equals_that_of_the_model(experts: int, k: int, router: Router) -> None:
    layer = RouterLayer(16, MoE(num_experts=experts, num_experts_per_tok=k, intermediate_size=8, router=router))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in (layer.weight, layer.correction):
            if parameter is not None:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    layer = layer.to(DEVICE)
    logits, weights, choices = layer(torch.randn(40, 16, generator=generator).to(DEVICE), implementation("standard"))
    result, picked = moe_routing(
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
    torch.testing.assert_close(everywhere.scatter(1, picked, result), everywhere.scatter(1, choices, weights.detach()))


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("zero_experts", [0, 3])
def test_experts_equal_those_of_the_model(gated: bool, zero_experts: int) -> None:
    """With and without gates, with biases, and with experts that compute nothing."""
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
    choices = chosen(15, 4 + zero_experts, 3)
    out = layer(x, weights, choices, implementation("standard"))
    biases = layer.gate_bias, layer.up_bias, layer.down_bias
    matrices = layer.gate_proj, layer.up_proj, layer.down_proj
    ours = moe(x, weights, choices, *matrices, *biases, activation=spec.activation)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if DEVICE.type == "cuda" else {}  # tf32
    torch.testing.assert_close(ours, out, **tolerance)
    parameters = list(layer.parameters())
    for grad, expected in zip(
        torch.autograd.grad(ours.square().sum(), parameters),
        torch.autograd.grad(out.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(grad, expected, **tolerance)


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize(("tokens", "tile"), [(1, 16), (24, 32), (40, 64), (80, 128)])
def test_every_tile_height(tokens: int, tile: int, index: int) -> None:
    """Each height with the configuration that ships and with the next. 96 columns are a full tile and a part of one."""
    arguments = inputs(Case(tokens, 72, 96, 2 if tokens > 1 else 5, 1), torch.bfloat16)
    assert rows_per_tile(tokens, 2) == tile
    names = "gated_forward", "grouped_product"
    with launching.poisoned(), launching.preferring(dict.fromkeys(names, index)):
        result = moe(**arguments)
    exact = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    assert compare("out", result, reference(**arguments), reference(**exact)).passed


def test_results_repeat_and_idle_experts_have_zero_gradients() -> None:
    arguments = inputs(Case(20, 24, 16, 6, 2, used=3))
    matrices = [arguments[name].requires_grad_() for name in ("gate", "up", "down")]
    first, second = (torch.autograd.grad(moe(**arguments).sum(), matrices) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
        assert one[:3].abs().sum() > 0
        assert not one[3:].any()


def test_nothing_is_saved_without_gradients() -> None:
    """A forward pass alone saves neither the projections nor another tensor of R · F values."""
    arguments = inputs(Case(6, 16, 8, 2, 1))
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
        moe(**arguments)
        assert not saved
        moe(**arguments | {"up": arguments["up"].requires_grad_()})
    assert saved.count(6 * 8) == 2


def test_no_tokens_and_no_rows() -> None:
    arguments = inputs(Case(4, 16, 8, 2, 1))
    empty = {name: x[:0] if name in ("x", "weights", "chosen") else x for name, x in arguments.items()}
    leaves = [empty[name].requires_grad_() for name in ("up", "down")]
    out = moe(**empty)
    assert out.shape == (0, 16)
    assert all(not grad.any() for grad in torch.autograd.grad(out.sum(), leaves))
    weight = torch.randn(3, 8, 16, device=DEVICE)
    assert grouped_matmul(arguments["x"][:0], weight, torch.zeros(4, dtype=torch.int32, device=DEVICE)).shape == (0, 8)


@pytest.mark.parametrize("name", ["mixtral-8x7b", "gpt-oss-20b"])
def test_flops_are_those_of_the_sizing_table(name: str) -> None:
    """`cost` of one layer's experts equals the ops of that layer, forward and backward."""
    spec = load_bundled(name)
    ffn = next(layer.ffn for layer in spec.layers.values() if isinstance(layer.ffn, MoE))
    ops = [op for op in lower(spec, Workload.train(512)) if "experts" in op.name and op.matrix and 0 in op.layers]
    assert len(ops) == 3
    case = Case(512, spec.hidden_size, ffn.intermediate_size, ffn.num_experts, ffn.num_experts_per_tok)
    cost = KERNEL.cost(case, torch.bfloat16)
    assert sum(op.forward_flops for op in ops) == cost.flops
    assert sum(op.backward_flops for op in ops) == cost.backward_flops


def test_it_compiles_without_graph_breaks() -> None:
    """One graph from logits to the result, and one for its backward pass."""
    case = Case(6, 16, 8, 3, 2)
    arguments = inputs(case)
    logits = torch.randn(6, 3, device=DEVICE)
    arguments = {name: x for name, x in arguments.items() if name not in ("weights", "chosen")}

    def whole(logits: Tensor, **matrices: Any) -> Tensor:
        return moe(weights=(routed := moe_routing(logits, 2, normalize=True))[0], chosen=routed[1], **matrices)

    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    leaves = [logits.requires_grad_(), *(arguments[name].requires_grad_() for name in ("x", "gate", "up", "down"))]
    eager = torch.autograd.grad(whole(logits, **arguments).sum(), leaves)
    gradients = torch.autograd.grad(compiled(logits, **arguments).sum(), leaves)
    for one, other in zip(gradients, eager, strict=True):
        torch.testing.assert_close(one, other)


def test_invalid_arguments_are_refused() -> None:
    arguments = inputs(Case(4, 16, 8, 2, 1))
    wrong: dict[str, Any] = {
        "x": arguments["x"][:, :8],
        "gate": arguments["gate"].bfloat16(),
        "down": arguments["up"],
        "up_bias": torch.zeros(2, 16, device=DEVICE),
        "weights": arguments["weights"][:2],
        "chosen": arguments["chosen"].to(torch.uint8),
    }
    for name, value in wrong.items():
        with pytest.raises(ValueError, match="must"):
            moe(**arguments | {name: value})
    with pytest.raises(ValueError, match="swiglu_oai"):
        moe(**arguments | {"gate": None, "activation": "swiglu_oai"})
    with pytest.raises(KeyError):
        moe(**arguments | {"activation": "tanh"})
    logits = torch.randn(3, 6, device=DEVICE)
    for options in ({"k": 7}, {"k": 2, "n_group": 4}, {"k": 2, "scores": "softmax_topk", "n_group": 2}):
        with pytest.raises(ValueError, match=r"experts|n_group|softmax_topk"):
            moe_routing(logits, **options)
    with pytest.raises(ValueError, match="fp32"):
        moe_routing(logits.bfloat16(), 2)
    with pytest.raises(KeyError):
        moe_routing(logits, 2, scores="sparsemixer")
    offsets = torch.tensor([0, 4], dtype=torch.int32, device=DEVICE)
    with pytest.raises(ValueError, match="must"):
        grouped_matmul(arguments["x"], arguments["gate"], offsets)
    x = torch.ones(4, 16, device=DEVICE)
    torch.testing.assert_close(
        grouped_matmul(x, arguments["gate"][:1], offsets),
        grouped_reference(x, arguments["gate"][:1], offsets),
        rtol=1e-2,
        atol=1e-2,
    )
