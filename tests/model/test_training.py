"""Training: gradients of every weight, narrow formats, torch.compile, and a small model that learns Python source."""

from __future__ import annotations

import argparse
import inspect
import math
from typing import Any

import pytest
import torch
import torch._dynamo
from msgspec.structs import replace
from torch import Tensor
from torch.nn import functional as F

from llmbench import model as models
from llmbench.model.decoder import Decoder
from llmbench.model.generation import generate
from llmbench.model.implementations import implementation
from llmbench.model.implementations.plain import STANDARD
from llmbench.model.norms import NormLayer
from llmbench.model.positions import tables_of
from llmbench.model.residual import Residual
from llmbench.model.step import Step
from llmbench.model.trace import run_once, shortened
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import Gated
from llmbench.spec.model import ModelSpec, Norm
from llmbench.spec.override import override

SMALL = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
MHA = {"num_key_value_heads": 4}
WIDTH = {"layers.*.ffn.intermediate_size": 48}
EXPERTS = {"layers.*.ffn.num_experts": 8, "layers.*.ffn.num_experts_per_tok": 2}
LATENT = {
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim")),  # MLA has its own, below
    "layers.*.mixer.num_attention_heads": 4,
    "layers.*.mixer.kv_lora_rank": 16,
    "layers.*.mixer.q_lora_rank": 12,
    "layers.*.mixer.qk_nope_head_dim": 8,
    "layers.*.mixer.qk_rope_head_dim": 4,
    "layers.*.mixer.v_head_dim": 6,
    "layers.moe.ffn.shared.intermediate_size": 16,
    "layers.moe.ffn.router.n_group": 4,
    "layers.moe.ffn.router.topk_group": 2,
}
MOE = {key.replace("*", "moe"): value for key, value in EXPERTS.items()}
ENCODER = {"encoder.layers.*.mixer.num_attention_heads": 4, "encoder.layers.*.mixer.num_key_value_heads": 4}
ENCODER |= {"encoder.layers.*.mixer.head_dim": 8, "encoder.layers.*.ffn.intermediate_size": 48}
CROSS = {key.replace("encoder.", "").replace("mixer", "cross_attention"): v for key, v in ENCODER.items()}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": MHA,
    "llama2-7b": MHA,
    "llama3.1-8b": {},
    "mistral-7b-v0.1": {"sliding_window": 8},
    "qwen2-7b": {},
    "qwen3-8b": {},
    "gemma2-2b": {"layers.local.mixer.sliding_window": 8},
    "gemma3-1b": {"layers.local.mixer.sliding_window": 8},
    "phi-3-mini": MHA,
    "olmo2-7b": MHA,
    "bloom-560m": MHA,
    "mpt-7b": MHA,
    "falcon-7b": {"num_key_value_heads": 1},
    "gpt-j-6b": MHA | {"positions.rotary_dim": 4},
    "pythia-6.9b": MHA | {"positions.rotary_dim": 4},
    "starcoder2-3b": {},
    "command-r": MHA,
    "opt-125m": MHA,
    "mixtral-8x7b": {},
    "qwen3-30b-a3b": EXPERTS,
    "glm-4-9b": {"positions.rotary_dim": 4},
    "phi-3.5-moe": EXPERTS,
    "llama4-scout": EXPERTS
    | {
        "layers.*.ffn.num_experts_per_tok": 1,
        "layers.*.ffn.shared.intermediate_size": 16,
        "layers.chunked_moe.mixer.attention_chunk_size": 8,
    },
    "deepseek-v3": MOE | LATENT,
    "bert-base": MHA,
    "t5-small": MHA | ENCODER | CROSS,
    "gpt-oss-20b": EXPERTS | {"layers.local.mixer.sliding_window": 8},
}


def tiny(name: str) -> ModelSpec:
    """A bundled model with up to two layers of each kind, and a hundred thousand times smaller."""
    shape = SMALL | WIDTH | FAMILIES[name]
    return override(shortened(load_bundled(name)), {key: value for key, value in shape.items() if value is not None})


def tokens(spec: ModelSpec, length: int = 24, batch: int = 2) -> Tensor:
    """Random tokens, the same in every call."""
    return torch.randint(spec.vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


def built(name: str, **options: Any) -> Decoder:
    """A tiny model with `standard`, which computes every model."""
    return models.build(tiny(name), impl="standard", **options)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_weight_has_a_gradient(name: str) -> None:
    """Two tokens reach few experts. The others get gradients of zero, not None, which an optimizer can use."""
    model = built(name)
    run_once(model, tokens(model.spec, 2, 1)).square().mean().backward()
    for where, parameter in model.named_parameters():
        assert parameter.grad is not None, where
        assert torch.isfinite(parameter.grad).all(), where
    experts = [p.grad for where, p in model.named_parameters() if where.endswith("experts.up_proj")]
    for grad in experts:
        assert grad is not None
        unused = grad.flatten(1).abs().sum(1) == 0
        assert unused.any()
        assert not unused.all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FAMILIES)
def test_narrow_formats(name: str, dtype: torch.dtype) -> None:
    model = built(name, dtype=dtype)
    wide = models.build(model.spec, impl="standard")
    wide.load_state_dict(model.state_dict())
    with torch.no_grad():
        narrow, exact = (run_once(either, tokens(model.spec)) for either in (model, wide))
    assert narrow.dtype == dtype
    assert torch.isfinite(narrow).all()
    if not model.spec.is_moe:  # in a mixture, rounding may choose another expert
        assert (narrow.float() - exact).norm() < 0.05 * exact.norm()


ATTENTION = (
    "gpt2",  # a head of keys per head of queries
    "llama3.1-8b",  # groups
    "falcon-7b",  # one head of keys
    "mistral-7b-v0.1",  # a window
    "gemma3-1b",  # windows in some layers
    "llama4-scout",  # chunks
    "bloom-560m",  # ALiBi
    "t5-small",  # a trained bias, and cross-attention
    "bert-base",  # both directions
    "deepseek-v3",  # latents
)
"""A family for each kind of attention that SDPA computes, which has no soft caps and no sinks. Outside of attention,
`sdpa` is the same code as `standard`."""


@pytest.mark.parametrize(
    ("name", "impl"), [(name, "standard") for name in FAMILIES] + [(name, "sdpa") for name in ATTENTION]
)
def test_a_block_compiles_without_graph_breaks(name: str, impl: str) -> None:
    """Every kind of layer compiles as one graph, forward and backward, with equal results. With `sdpa`, which differs
    in attention only, the layers have the smallest feed-forward."""
    spec = tiny(name)
    if spec.is_moe and name != "deepseek-v3":  # the graph has the ops of each expert; its router chooses groups
        spec = override(spec, {"num_experts": 3})
    if impl == "sdpa":
        one = Gated(intermediate_size=8)
        spec = replace(spec, layers={kind: replace(layer, ffn=one) for kind, layer in spec.layers.items()})
    model = models.build(spec, impl=impl)
    positions = torch.arange(24).expand(2, -1)
    x, memory = torch.randn(2, 2, 24, spec.hidden_size, generator=torch.Generator().manual_seed(2))
    step = Step(positions, None, True, tables_of(model.rotations, positions, 24), implementation(impl), memory=memory)
    for kind in {layer: kind for kind, layer in spec.layers.items()}.values():
        block = model.layers[spec.order.index(kind)]
        torch._dynamo.reset()
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        out = torch.compile(block, fullgraph=True, backend="aot_eager")(Residual(ours), step, None, None)[0].whole()
        expected = block(Residual(theirs), step, None, None)[0].whole()
        torch.testing.assert_close(out, expected)
        out.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_offset_norm_and_its_backward(dtype: torch.dtype) -> None:
    """Against plain torch and its autograd."""
    generator = torch.Generator().manual_seed(0)
    norm = NormLayer(16, Norm(unit_offset=True, eps=1e-6))
    x, dy = (torch.randn(3, 5, 16, generator=generator).to(dtype) for _ in range(2))
    weight = torch.randn(16, generator=generator).to(dtype)
    norm.weight = torch.nn.Parameter(weight)
    ours, theirs, plain = x.clone().requires_grad_(), x.clone().requires_grad_(), weight.clone().requires_grad_()
    norm(ours, STANDARD).backward(dy)
    wide = theirs.float()
    out = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6) * (1 + plain.float())
    out.to(dtype).backward(dy)
    torch.testing.assert_close(norm(x, STANDARD), out.to(dtype))
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(norm.weight.grad, plain.grad)


# A small real thing

STEPS, BATCH, LENGTH = 250, 12, 64


def test_a_small_model_learns_python_and_continues_it() -> None:
    """A LLaMA of 130,000 parameters reads bytes of Python source. It predicts unseen source better than the frequency
    of every pair of bytes does, so attention has learned from more than the last byte."""
    shape = {"vocab_size": 256, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    spec = override(load_bundled("llama2-7b"), shape | {"num_hidden_layers": 2, "intermediate_size": 192})
    model = models.build(spec, seed=0)
    text = torch.tensor(list(inspect.getsource(argparse).encode()))
    text, unseen = text[: -48 * LENGTH], text[-48 * LENGTH :].view(48, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=STEPS, pct_start=0.1)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(STEPS):
        at = torch.randint(len(text) - LENGTH - 1, (BATCH, 1), generator=generator) + torch.arange(LENGTH + 1)
        loss = nats(model, text[at])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    by_byte, by_pair = nats_by_frequency(text, unseen)
    assert losses[0] > 0.95 * math.log(256)
    with torch.no_grad():
        assert nats(model, unseen) < by_pair - 0.1 < by_byte - 0.9
    assert sum(losses[-20:]) / 20 < by_pair - 0.2
    prompt = b"    def __init__(se"
    generated = generate(model, torch.tensor([list(prompt)]), max_new_tokens=5, temperature=0.0).tokens[0]
    assert bytes(generated.tolist()).startswith(b"lf")
    drawn = [
        generate(model, torch.tensor([list(prompt)]), max_new_tokens=20, top_k=20, seed=seed).tokens
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def nats(model: Decoder, rows: Tensor) -> Tensor:
    """Mean cross-entropy of the next byte."""
    return F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())


def nats_by_frequency(text: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of the next byte by its frequency in the text, and by its frequency after the last byte.

    A pair counts once more than in the text, divided over the next bytes by their frequency, so no frequency is 0."""
    byte = torch.bincount(text, minlength=256) + 1.0
    byte /= byte.sum()
    pair = torch.bincount(256 * text[:-1] + text[1:], minlength=256**2).view(256, 256) + byte
    pair /= pair.sum(1, keepdim=True)
    return -byte[rows[:, 1:]].log().mean(), -pair[rows[:, :-1], rows[:, 1:]].log().mean()
