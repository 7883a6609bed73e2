"""Synthetic models and data for experiments: small models, a task that they learn in a few steps, and expert choices.

t tokens, k experts per token, B batch, S length.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, get_args

import msgspec
import torch
from torch import Tensor

from llmbench.model import build
from llmbench.model.decoder import Decoder
from llmbench.model.ffn import MixtureLayer
from llmbench.model.routing import balance_loss, record_routing
from llmbench.spec.catalog import load_bundled
from llmbench.spec.ffn import FFN, MoE
from llmbench.spec.mixer import Attention, Mixer
from llmbench.spec.model import Layer, ModelSpec, Norm
from llmbench.spec.position import Positions, Rope

__all__ = ["LEARNING_RATE", "ROUTINGS", "TAIL", "Routing", "choices", "heads", "model_of", "progressions", "trained"]

# Small models


def heads(count: int, kv_heads: int, head_dim: int, **more: Any) -> Attention:
    """Return a causal attention with `count` query heads and `kv_heads` key-value heads."""
    return Attention(num_attention_heads=count, num_key_value_heads=kv_heads, head_dim=head_dim, **more)


def model_of(
    name: str,
    hidden: int,
    *,
    mixer: Mixer | None = None,
    ffn: FFN | None = None,
    norm: Norm | None = None,
    positions: Positions | None = None,
    layers: int = 1,
    vocab: int = 256,
) -> ModelSpec:
    """Return a model of equal pre-norm layers with these parts.

    The default norm is RMSNorm, and the default position encoding is RoPE. Without `mixer`, the layers have no mixer.
    Without `ffn`, they have no feed-forward.
    """
    base = load_bundled("llama2-7b")
    layer = Layer(mixer=mixer, ffn=ffn)
    return msgspec.structs.replace(
        base,
        name=name,
        hidden_size=hidden,
        vocab_size=vocab,
        norm=norm or base.norm,
        positions=positions or Rope(),
        layers={"block": layer},
        pattern=f"{layers}*block",
        published_parameters=None,
        notes=(),
    ).check()


# A task that a small model learns in a few steps

LEARNING_RATE = 1e-3
"""The learning rate of a training, unless said."""

TAIL = 10
"""The final loss of a training is the mean loss of its last `TAIL` steps."""


def progressions(vocab_size: int, batch: int, length: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return token sequences [B, S] and the next token of each position [B, S].

    A sequence is start, start + stride, start + 2·stride, … modulo the vocabulary size, with a stride from 1 to 7. The
    task shows whether a model learns at all, and whether the model can read longer sequences than those in training.
    The task does not show the quality of a model on text.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(vocab_size, (batch, 1), generator=generator)
    stride = torch.randint(1, 8, (batch, 1), generator=generator)
    tokens = ((start + stride * torch.arange(length + 1)) % vocab_size).to(device)
    return tokens[:, :-1], tokens[:, 1:]


def trained(
    spec: ModelSpec,
    *,
    steps: int,
    length: int,
    device: torch.device,
    batch: int = 8,
    learning_rate: float = LEARNING_RATE,
    warmup: int = 0,
    balance: float = 0.0,
) -> tuple[Decoder, list[float]]:
    """Train a model in fp32 on progressions, with `steps` steps of AdamW. Return the model and its loss at each step.

    `warmup`: the number of first steps in which the learning rate grows linearly.
    `balance`: the multiple of the balance loss of the experts that is added to the loss.
    """
    model = build(spec, device=device, init="xavier")
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    losses = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / max(1, warmup))
        tokens, targets = progressions(spec.vocab_size, batch, length, step, device)
        with record_routing(model) as routings:
            loss = model(tokens, targets=targets)
        (loss + balance * balance_loss(routings.values()) if balance else loss).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.detach())
    return model, torch.stack(losses).tolist()


# Expert choices

Routing = Literal["even", "skewed", "trained", "balanced"]
ROUTINGS: tuple[Routing, ...] = get_args(Routing)

STEPS, LENGTH, VOCABULARY = 100, 32, 64
CPU = torch.device("cpu")


def choices(routing: Routing, experts: int, top_k: int, tokens: int) -> Tensor:
    """Return the chosen experts [t, k]. The k experts of a token differ. They are drawn on the CPU, so that every
    device gets the same choices.

    `even`: all experts have the same chance. `skewed`: expert e, counted from 0, has a chance proportional to 1 / (e +
    1). Both draw without replacement. `trained`: the choices of the last router of a small model after 100 training
    steps on progressions without a balance loss. `balanced`: the same, with 0.1 times the balance loss. The usual 0.01
    needs more steps.
    """
    if routing in ("even", "skewed"):
        chances = torch.arange(1, experts + 1, dtype=torch.float64) ** -(1.0 if routing == "skewed" else 0.0)
        generator = torch.Generator().manual_seed(7)
        return torch.multinomial(chances.expand(tokens, -1), top_k, generator=generator)
    model = _trained_mixture(experts, top_k, 0.1 if routing == "balanced" else 0.0)
    unseen, _ = progressions(VOCABULARY, -(-tokens // LENGTH), LENGTH, STEPS, CPU)
    with torch.no_grad():
        model(unseen)
    last = model.layers[-1].ffn
    assert isinstance(last, MixtureLayer)
    assert last.last_chosen is not None
    return last.last_chosen[:tokens]


@cache
def _trained_mixture(experts: int, top_k: int, balance: float) -> Decoder:
    ffn = MoE(num_experts=experts, num_experts_per_tok=top_k, intermediate_size=32)
    spec = model_of("router", 64, mixer=heads(4, 4, 16), ffn=ffn, layers=2, vocab=VOCABULARY)
    return trained(spec, steps=STEPS, length=LENGTH, device=CPU, balance=balance)[0]
