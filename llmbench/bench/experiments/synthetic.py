"""Synthetic models and data for experiments: small models, and choices of experts.

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

__all__ = ["ROUTINGS", "Routing", "choices", "heads", "model_of", "progressions"]

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


# Expert choices

Routing = Literal["even", "skewed", "trained", "balanced"]
ROUTINGS: tuple[Routing, ...] = get_args(Routing)

STEPS, BATCH, LENGTH, VOCABULARY, LEARNING_RATE = 100, 8, 32, 64, 1e-3
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
    unseen, _ = progressions(-(-tokens // LENGTH), STEPS)
    with torch.no_grad():
        model(unseen)
    last = model.layers[-1].ffn
    assert isinstance(last, MixtureLayer)
    assert last.last_chosen is not None
    return last.last_chosen[:tokens]


def progressions(batch: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return token sequences [B, S] and the next token of each position [B, S].

    A sequence is start, start + stride, start + 2·stride, … modulo the vocabulary size, with a stride from 1 to 7. A
    small model learns this task in a few steps. The task does not show the quality of a model on text.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(VOCABULARY, (batch, 1), generator=generator)
    stride = torch.randint(1, 8, (batch, 1), generator=generator)
    tokens = (start + stride * torch.arange(LENGTH + 1)) % VOCABULARY
    return tokens[:, :-1], tokens[:, 1:]


@cache
def _trained_mixture(experts: int, top_k: int, balance: float) -> Decoder:
    """Return a small model with experts that AdamW has trained in fp32. `balance`: the factor of the balance loss."""
    ffn = MoE(num_experts=experts, num_experts_per_tok=top_k, intermediate_size=32)
    spec = model_of("router", 64, mixer=heads(4, 4, 16), ffn=ffn, layers=2, vocab=VOCABULARY)
    model = build(spec, device=CPU, init="xavier")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for step in range(STEPS):
        tokens, targets = progressions(BATCH, step)
        with record_routing(model) as routings:
            loss = model(tokens, targets=targets)
        (loss + balance * balance_loss(routings.values()) if balance else loss).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model
