"""Experts: which tokens they take, what becomes of the others, and what keeps their load even."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
import transformers
from torch import Tensor
from torch.nn import functional as F

from llmbench import model as models
from llmbench.errors import CannotRunError, SpecError, UnsupportedError
from llmbench.model.balance import balance_losses, model_balance_losses, nudge_corrections
from llmbench.model.decoder import Decoder
from llmbench.model.ffn import MixtureLayer, places_of
from llmbench.model.implementations import implementation
from llmbench.model.trace import traced_flops
from llmbench.sizing.lower import lower
from llmbench.sizing.workload import Workload
from llmbench.spec.ffn import MoE, Router, SharedExperts
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.position import Rope

from . import small

HIDDEN = 16
STANDARD = implementation("standard")


def mixture(**fields: Any) -> MixtureLayer:
    """Eight experts, two a token, with lively weights."""
    given: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 12}
    layer = MixtureLayer(HIDDEN, MoE(**{**given, **fields}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for held in [*layer.parameters(), *layer.buffers()]:
            held.normal_(0.0, 0.4, generator=generator)
    return layer


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, HIDDEN, generator=torch.Generator().manual_seed(seed))


def one_by_one(layer: MixtureLayer, x: Tensor, room: int | None, *, each_sequence: bool) -> Tensor:
    """Token after token: its experts in the order of its choices, each as long as it has room."""
    out = torch.zeros_like(x)
    experts = layer.experts
    assert experts.gate_proj is not None
    taken = [0] * layer.moe.num_experts
    for row in range(x.shape[0]):
        if each_sequence:
            taken = [0] * layer.moe.num_experts
        for place in range(x.shape[1]):
            token = x[row, place]
            _, weights, chosen = layer.router(token[None], STANDARD)
            for weight, e in zip(weights[0], chosen[0].tolist(), strict=True):
                taken[e] += 1
                if room is not None and taken[e] > room:
                    continue
                read = weight * token if layer.moe.router.on_input else token
                inner = F.silu(experts.gate_proj[e] @ read) * (experts.up_proj[e] @ read)
                made = experts.down_proj[e] @ inner
                out[row, place] += made if layer.moe.router.on_input else weight * made
    return out


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize(
    "limit",
    [{}, *({"expert_capacity": n} for n in (1, 3, 100)), *({"capacity_factor": f} for f in (0.3, 1.0, 1.25, 8.0))],
)
@torch.no_grad()
def test_experts_take_the_first_tokens_they_have_room_for(limit: dict[str, Any], on_input: bool) -> None:
    """Of each sequence, or by a factor of their even share of the whole pass; without a limit, all."""
    layer = mixture(router=Router(normalize=True, on_input=on_input), **limit)
    x = tokens(3, 7)
    room = limit.get("expert_capacity")
    if "capacity_factor" in limit:
        room = math.ceil(limit["capacity_factor"] * 3 * 7 * 2 / 8)
    found = layer(x, STANDARD)
    torch.testing.assert_close(found, one_by_one(layer, x, room, each_sequence="expert_capacity" in limit))
    if not limit:
        assert layer.last_kept is None
    else:
        assert layer.last_kept is not None
        assert bool(layer.last_kept.all()) == (room is not None and room >= 21)


def test_the_limits_exclude_each_other() -> None:
    with pytest.raises(SpecError, match="exclude each other"):
        mixture_model(
            MoE(num_experts=4, num_experts_per_tok=1, intermediate_size=8, capacity_factor=1.0, expert_capacity=2)
        )
    with pytest.raises(UnsupportedError, match="limited capacity"):
        mixture(capacity_factor=1.0, zero_experts=2)


def test_places_are_counted_by_token_and_then_by_choice() -> None:
    chosen = torch.tensor([[[1, 0], [0, 1], [0, 2]], [[2, 1], [2, 0], [1, 2]]])
    assert places_of(chosen, 3).tolist() == [[[0, 0], [1, 1], [2, 0]], [[0, 0], [1, 0], [1, 2]]]


@pytest.mark.parametrize("limit", [{"expert_capacity": 2}, {"capacity_factor": 0.5}])
def test_a_dropped_token_still_has_what_is_beside_the_experts(limit: dict[str, Any]) -> None:
    """And every weight a gradient."""
    layer = mixture(num_experts_per_tok=1, shared=SharedExperts(intermediate_size=8), **limit)
    x = tokens(1, 24)
    out = layer(x, STANDARD)
    assert layer.last_kept is not None
    dropped = ~layer.last_kept.view(1, 24)
    assert 0 < int(dropped.sum()) < 24
    assert layer.shared is not None
    beside = layer.shared(x, STANDARD)
    torch.testing.assert_close(out[dropped], beside[dropped])
    assert not torch.isclose(out[~dropped], beside[~dropped]).all()
    out.sum().backward()
    assert all(held.grad is not None and torch.isfinite(held.grad).all() for held in layer.parameters())


def mixture_model(moe: MoE) -> ModelSpec:
    return ModelSpec(
        name="mixture",
        source="a test",
        layers={"block": Layer(mixer=small.gqa(), ffn=moe)},
        pattern="2*block",
        vocab_size=small.VOCABULARY,
        hidden_size=32,
        tie_word_embeddings=False,
        positions=Rope(),
    ).check()


def test_buffers_have_the_flops_of_the_table() -> None:
    """Full or not, all rows of a buffer are computed: 1.5 times the experts' even shares of 2 · 24 · 2 choices."""
    spec = mixture_model(MoE(num_experts=8, num_experts_per_tok=2, intermediate_size=24, capacity_factor=1.5))
    ops = list(lower(spec, Workload.prefill(24, 2, masked_pairs=True)))
    names = {name for op in ops for name in op.names()}
    found = traced_flops(models.build(spec, impl="standard", device="meta"), names, 24, 2)
    for op in ops:
        for where in op.names():
            assert found.get(where, 0) == op.forward_flops, where
    assert found["layers.0.ffn.experts.up_proj"] == 2 * 32 * 24 * (8 * 18)


@pytest.mark.parametrize("limit", [{"capacity_factor": 1.25}, {"expert_capacity": 5}])
def test_blocks_with_limits_compile_whole(limit: dict[str, Any]) -> None:
    layer = mixture(**limit)
    x = tokens(2, 9)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        compiled = torch.compile(lambda x: layer(x, STANDARD), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), layer(x, STANDARD))


@pytest.mark.parametrize("capacity", [1, 3])
@torch.no_grad()
def test_switch_drops_the_tokens_that_transformers_drops(capacity: int, tmp_path: Path) -> None:
    config = transformers.SwitchTransformersConfig(
        vocab_size=96, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4, num_experts=4,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, expert_capacity=capacity,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.SwitchTransformersForConditionalGeneration(config).float().eval()
    for held in theirs.parameters():
        held.normal_(1.0 if held.dim() == 1 else 0.0, 0.2)
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path)
    source, ids = small.prompt(2, 15), small.prompt(2, 11, seed=5)
    wanted = theirs(input_ids=source, decoder_input_ids=ids, use_cache=False).logits
    assert (ours(ids, source) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    layers = [layer for layer in ours.modules() if isinstance(layer, MixtureLayer)]
    assert len(layers) == 2
    assert all(layer.last_kept is not None and not layer.last_kept.all() for layer in layers)


# Balance


def test_the_balance_losses() -> None:
    """1 where all is even, E where all falls on one expert; the z-loss is ln(E)² where logits are zero."""
    even = torch.arange(8).view(4, 2) % 8
    balance, z = balance_losses(torch.zeros(4, 8), even, 8)
    assert float(balance) == pytest.approx(1.0)
    assert float(z) == pytest.approx(math.log(8) ** 2)
    one = torch.full((4, 8), -100.0)
    one[:, 3] = 0.0
    balance, z = balance_losses(one, torch.full((4, 1), 3), 8)
    assert float(balance) == pytest.approx(8.0)
    assert float(z) == pytest.approx(0.0, abs=1e-6)


def test_the_balance_loss_of_transformers() -> None:
    """Mixtral's: there the shares of the k choices are added, so that it is k times as large."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    chosen = logits.topk(2).indices
    wanted = load_balancing_loss_func((logits,), num_experts=8, top_k=2)
    assert float(balance_losses(logits, chosen, 8)[0] * 2) == pytest.approx(float(wanted), rel=1e-6)


def lively(router: Router, experts: int = 8) -> Decoder:
    """A small model of experts whose router much prefers some."""
    moe = MoE(num_experts=experts, num_experts_per_tok=2, intermediate_size=8, router=router)
    model = small.model_of(mixture_model(moe))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, MixtureLayer):
                assert layer.router.bias is not None
                layer.router.bias.copy_(torch.linspace(-1.0, 1.0, experts))
    return model


def unevenness(model: Decoder) -> float:
    """The load of the busiest expert as a multiple of its even share, the mean over the layers."""
    found = []
    for layer in model.modules():
        if isinstance(layer, MixtureLayer) and layer.last_chosen is not None:
            load = F.one_hot(layer.last_chosen, layer.moe.num_experts).sum((0, 1)).float()
            found.append(float(load.max() / load.mean()))
    return sum(found) / len(found)


@torch.no_grad()
def test_corrections_even_out_a_skewed_router() -> None:
    """Two hundred steps on the same tokens; the weights of what is chosen are the scores, without the correction."""
    model = lively(Router(scores="sigmoid", correction="buffer", normalize=True, bias=True))
    ids = small.prompt(4, 64)
    model(ids)
    before = unevenness(model)
    assert before > 1.7
    for _ in range(200):
        nudge_corrections(model, speed=0.01)
        model(ids)
    assert unevenness(model) < 1.25
    router = next(layer for layer in model.modules() if isinstance(layer, MixtureLayer)).router
    x = tokens(1, 5)[0].repeat(1, 2)
    logits, weights, chosen = router(x, STANDARD)
    scores = logits.sigmoid().gather(-1, chosen)
    torch.testing.assert_close(weights, scores / scores.sum(-1, keepdim=True))


def test_one_step_of_the_corrections() -> None:
    """Up by `speed` below the mean load, down above it, as it is at the mean."""
    layer = mixture(num_experts=4, router=Router(scores="sigmoid", correction="buffer"))
    assert layer.router.correction is not None
    layer.router.correction.zero_()
    layer.last_chosen = torch.tensor([[0, 1], [0, 1], [0, 3], [0, 2]])  # loads of 4, 2, 1 and 1
    nudge_corrections(layer, speed=0.5)
    assert layer.router.correction.tolist() == [-0.5, 0.0, 0.5, 0.5]


def test_the_balance_loss_evens_out_a_skewed_router() -> None:
    """By gradient steps on the routers alone."""
    model = lively(Router(bias=True))
    ids = small.prompt(4, 64)
    routers = [held for name, held in model.named_parameters() if ".router." in name]
    optimizer = torch.optim.Adam(routers, lr=0.02)
    losses, loads = [], []
    for _ in range(40):
        model(ids)
        balance, z = model_balance_losses(model)
        optimizer.zero_grad()
        (balance + 1e-3 * z).backward()
        optimizer.step()
        losses.append(balance.item())
        loads.append(unevenness(model))
    assert losses[0] > 1.1
    assert losses[-1] < 1.02
    assert loads[0] > 1.7
    assert loads[-1] < 1.5


def test_a_dense_model_has_no_balance_losses() -> None:
    model = small.model_of(small.SPECS["gqa"])
    assert [loss.item() for loss in model_balance_losses(model)] == [0.0, 0.0]


# The choice


@pytest.mark.parametrize("correction", [None, "buffer"])
@torch.no_grad()
def test_only_the_best_groups_are_chosen_from(correction: Any) -> None:
    """By the sum of a group's two best corrected scores (DeepSeek-V3), or by its best (V2), token by token."""
    layer = mixture(
        num_experts=12, num_experts_per_tok=3,
        router=Router(scores="sigmoid", n_group=4, topk_group=2, correction=correction),
    )  # fmt: skip
    x = tokens(1, 40)[0]
    logits, weights, chosen = layer.router(x, STANDARD)
    for token in range(40):
        scores = logits[token].sigmoid()
        ranked = (scores if correction is None else scores + layer.router.correction).view(4, 3)
        worth = ranked.max(1).values if correction is None else ranked.sort(1).values[:, -2:].sum(1)
        groups = sorted(range(4), key=lambda group: -float(worth[group]))[:2]
        allowed = sorted(
            (e for group in groups for e in range(3 * group, 3 * group + 3)), key=lambda e: -ranked.flatten()[e]
        )
        assert sorted(chosen[token].tolist()) == sorted(allowed[:3])
        torch.testing.assert_close(weights[token], scores[chosen[token]])


def test_padding_takes_no_places() -> None:
    """Where experts have room for a share of a pass, padding would stand in it: rows of other lengths are refused."""
    layer = Layer(
        mixer=small.gqa(), ffn=MoE(num_experts=4, num_experts_per_tok=2, intermediate_size=8, capacity_factor=1.0)
    )
    model = small.model_of(msgspec.structs.replace(small.small(small.gqa()), layers={"kind0": layer}))
    tokens = small.prompt(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, lengths=torch.tensor([6, 6])), model(tokens))
    with pytest.raises(CannotRunError, match="padding would take the places"):
        model(tokens, lengths=torch.tensor([6, 4]))
