"""Experts: which tokens they take, and the output for the tokens that they drop."""

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
    """Eight experts, two per token, with large random weights."""
    defaults: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 12}
    layer = MixtureLayer(HIDDEN, MoE(**{**defaults, **fields}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*layer.parameters(), *layer.buffers()]:
            tensor.normal_(0.0, 0.4, generator=generator)
    return layer


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    return torch.randn(batch, length, HIDDEN, generator=torch.Generator().manual_seed(seed))


def one_by_one(layer: MixtureLayer, x: Tensor, room: int | None, *, each_sequence: bool) -> Tensor:
    """The output token by token, with its experts in the order of its choices, as long as they have room."""
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
                out_row = experts.down_proj[e] @ inner
                out[row, place] += out_row if layer.moe.router.on_input else weight * out_row
    return out


@pytest.mark.parametrize("on_input", [False, True])
@pytest.mark.parametrize(
    "limit",
    [{}, *({"expert_capacity": n} for n in (1, 3, 100)), *({"capacity_factor": f} for f in (0.3, 1.0, 1.25, 8.0))],
)
@torch.no_grad()
def test_experts_take_the_first_tokens_up_to_their_capacity(limit: dict[str, Any], on_input: bool) -> None:
    """The limit counts per sequence, or as a factor of the even share of a pass. Without a limit they take all."""
    layer = mixture(router=Router(normalize=True, on_input=on_input), **limit)
    x = tokens(3, 7)
    room = limit.get("expert_capacity")
    if "capacity_factor" in limit:
        room = math.ceil(limit["capacity_factor"] * 3 * 7 * 2 / 8)
    actual = layer(x, STANDARD)
    torch.testing.assert_close(actual, one_by_one(layer, x, room, each_sequence="expert_capacity" in limit))
    if not limit:
        assert layer.last_kept is None
    else:
        assert layer.last_kept is not None
        assert bool(layer.last_kept.all()) == (room is not None and room >= 21)


def test_conflicting_limits_are_refused() -> None:
    with pytest.raises(SpecError, match="cannot be combined with"):
        mixture_model(
            MoE(num_experts=4, num_experts_per_tok=1, intermediate_size=8, capacity_factor=1.0, expert_capacity=2)
        )
    with pytest.raises(UnsupportedError, match="capacity_factor or expert_capacity with zero_experts"):
        mixture(capacity_factor=1.0, zero_experts=2)


def test_places_are_counted_by_token_and_then_by_choice() -> None:
    chosen = torch.tensor([[[1, 0], [0, 1], [0, 2]], [[2, 1], [2, 0], [1, 2]]])
    assert places_of(chosen, 3).tolist() == [[[0, 0], [1, 1], [2, 0]], [[0, 0], [1, 0], [1, 2]]]


@pytest.mark.parametrize("limit", [{"expert_capacity": 2}, {"capacity_factor": 0.5}])
def test_a_dropped_token_still_passes_the_shared_expert(limit: dict[str, Any]) -> None:
    """Every weight also has a gradient."""
    layer = mixture(num_experts_per_tok=1, shared=SharedExperts(intermediate_size=8), **limit)
    x = tokens(1, 24)
    out = layer(x, STANDARD)
    assert layer.last_kept is not None
    dropped = ~layer.last_kept.view(1, 24)
    assert 0 < int(dropped.sum()) < 24
    assert layer.shared is not None
    shared = layer.shared(x, STANDARD)
    torch.testing.assert_close(out[dropped], shared[dropped])
    assert not torch.isclose(out[~dropped], shared[~dropped]).all()
    out.sum().backward()
    assert all(tensor.grad is not None and torch.isfinite(tensor.grad).all() for tensor in layer.parameters())


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


def test_flops_of_buffers_equal_the_sizing_table() -> None:
    """All rows of a buffer are computed, full or not: 1.5 times the even shares of 2 · 24 · 2 choices."""
    spec = mixture_model(MoE(num_experts=8, num_experts_per_tok=2, intermediate_size=24, capacity_factor=1.5))
    ops = list(lower(spec, Workload.prefill(24, 2, masked_pairs=True)))
    names = {name for op in ops for name in op.names()}
    flops = traced_flops(models.build(spec, impl="standard", device="meta"), names, 24, 2)
    for op in ops:
        for where in op.names():
            assert flops.get(where, 0) == op.forward_flops, where
    assert flops["layers.0.ffn.experts.up_proj"] == 2 * 32 * 24 * (8 * 18)


@pytest.mark.parametrize("limit", [{"capacity_factor": 1.25}, {"expert_capacity": 5}])
def test_mixtures_with_limits_compile_without_graph_breaks(limit: dict[str, Any]) -> None:
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
    for tensor in theirs.parameters():
        tensor.normal_(1.0 if tensor.dim() == 1 else 0.0, 0.2)
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path)
    source, ids = small.prompt(2, 15), small.prompt(2, 11, seed=5)
    expected = theirs(input_ids=source, decoder_input_ids=ids, use_cache=False).logits
    assert (ours(ids, source) - expected).abs().max() <= 1e-5 * expected.abs().max()
    layers = [layer for layer in ours.modules() if isinstance(layer, MixtureLayer)]
    assert len(layers) == 2
    assert all(layer.last_kept is not None and not layer.last_kept.all() for layer in layers)


# The choice


@pytest.mark.parametrize("correction", [None, "buffer"])
@torch.no_grad()
def test_experts_are_chosen_from_the_best_groups(correction: Any) -> None:
    """Groups are ranked by the sum of their two best corrected scores (DeepSeek-V3), or by their best score (V2)."""
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


def test_padding_with_a_capacity_factor_is_refused() -> None:
    """The room of an expert is a share of the pass, so padding would take room: rows of unequal lengths are refused."""
    layer = Layer(
        mixer=small.gqa(), ffn=MoE(num_experts=4, num_experts_per_tok=2, intermediate_size=8, capacity_factor=1.0)
    )
    model = small.model_of(msgspec.structs.replace(small.small(small.gqa()), layers={"kind0": layer}))
    tokens = small.prompt(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens, lengths=torch.tensor([6, 6])), model(tokens))
    with pytest.raises(CannotRunError, match="padded tokens would take the places of real tokens"):
        model(tokens, lengths=torch.tensor([6, 4]))
