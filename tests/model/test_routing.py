"""The recorded decisions of routers, and the balance loss: that of transformers, and its effect on the load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from llmbench import model as models
from llmbench.bench.experiments.synthetic import heads, model_of, progressions
from llmbench.errors import CannotRunError
from llmbench.model.routing import Routing, balance_loss, record_routing
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import MoE, Router
from llmbench.spec.override import override

CPU = torch.device("cpu")


def test_the_balance_loss_equals_transformers(tmp_path: Path) -> None:
    """transformers joins the tokens of all layers, so one layer at a time is compared."""
    shape = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "intermediate_size": 48, "num_local_experts": 6, "num_experts_per_tok": 2}
    theirs = transformers.MixtralForCausalLM(transformers.MixtralConfig(**shape)).eval()
    theirs.save_pretrained(tmp_path)
    ours = models.load(tmp_path)
    ids = torch.randint(96, (3, 20), generator=torch.Generator().manual_seed(1))
    logits = theirs(ids, output_router_logits=True).router_logits
    with record_routing(ours) as routings:
        ours(ids)
    assert list(routings) == ["layers.0.ffn.router", "layers.1.ffn.router"]
    expected = [load_balancing_loss_func((layer,), 6, 2) for layer in logits]
    for routing, loss in zip(routings.values(), expected, strict=True):
        assert torch.allclose(balance_loss([routing]), loss, atol=1e-5)
    assert torch.allclose(balance_loss(routings.values()), (expected[0] + expected[1]) / 2, atol=1e-5)
    joined = Routing(*(torch.cat(parts) for parts in zip(*routings.values(), strict=True)))
    assert torch.allclose(balance_loss([joined]), load_balancing_loss_func(logits, 6, 2), atol=1e-5)


def test_an_even_load_gives_the_number_of_experts_per_token_and_one_expert_all() -> None:
    uniform = torch.full((12, 4), 0.25)
    every = Routing(uniform, torch.arange(24).view(12, 2) % 4)
    assert balance_loss([every]) == 2
    assert torch.equal(every.load, torch.full((4,), 0.25))
    one = Routing(torch.eye(4)[torch.zeros(12, dtype=torch.int64)], torch.zeros(12, 1, dtype=torch.int64))
    assert balance_loss([one]) == 4


def test_sigmoids_are_divided_by_their_sum_and_hooks_are_removed() -> None:
    spec = model_of("x", 16, mixer=heads(2, 2, 8), ffn=mixture(Router(scores="sigmoid")), layers=1, vocab=32)
    model = models.build(spec)
    with record_routing(model) as routings:
        model(torch.arange(9)[None])
    (kept,) = routings.values()
    assert torch.allclose(kept.probabilities.sum(-1), torch.ones(9))
    model(torch.arange(5)[None])
    assert routings["layers.0.ffn.router"] is kept
    dense = models.build(override(load_bundled("nanogpt-cpu"), {"num_hidden_layers": 1}))
    with record_routing(dense) as none:
        dense(torch.arange(5)[None])
    with pytest.raises(CannotRunError, match="no router"):
        balance_loss(none.values())


def mixture(router: Router) -> MoE:
    return MoE(num_experts=8, num_experts_per_tok=1, intermediate_size=32, router=router)


def largest_load(coefficient: float, steps: int = 60) -> float:
    """Train a model whose router prefers one expert at first. Return the largest load of an expert on new tokens,
    divided by the mean."""
    spec = model_of("x", 32, mixer=heads(2, 2, 16), ffn=mixture(Router(bias=True)), layers=1, vocab=64)
    model = models.build(spec, init="xavier")
    with torch.no_grad():
        model.layers[0].get_parameter("ffn.router.bias")[0] = 2.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        tokens, targets = progressions(8, step)
        with record_routing(model) as routings:
            loss: Tensor = model(tokens, targets=targets)
        (loss + coefficient * balance_loss(routings.values())).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    with torch.no_grad(), record_routing(model) as routings:
        model(progressions(8, steps)[0])
    (routing,) = routings.values()
    return float(routing.load.max()) * 8


def test_the_balance_loss_evens_the_load() -> None:
    assert largest_load(0.1) < 2 < 4 < largest_load(0.0)


def test_progressions_continue() -> None:
    """The task of the router: each token is the one before it plus a stride of the sequence."""
    tokens, targets = progressions(5, 3)
    strides = (targets - tokens) % 64
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert torch.equal(strides, strides[:, :1].expand_as(strides))
    assert 1 <= int(strides.min()) <= int(strides.max()) <= 7
