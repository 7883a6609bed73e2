"""Which experts tokens choose: by chances that are even or skewed, or as a router does that was trained.

t tokens, k experts a token.
"""

from __future__ import annotations

from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from llmbench.bench.experiments.short_training import progressions, trained
from llmbench.bench.experiments.synthetic import heads, model_of
from llmbench.model.decoder import Decoder
from llmbench.model.ffn import MixtureLayer
from llmbench.spec.ffn import MoE

__all__ = ["ROUTINGS", "Routing", "choices", "load"]

Routing = Literal["even", "skewed", "trained"]
ROUTINGS: tuple[Routing, ...] = get_args(Routing)

STEPS, LENGTH, VOCABULARY = 100, 32, 64
CPU = torch.device("cpu")


def choices(experts: int, top_k: int, tokens: int, routing: Routing) -> Tensor:
    """Experts [t, k] of so many tokens, different ones of a token. Made on the CPU, whatever computes with them.

    even, skewed: drawn without putting back; where it is skewed, expert e with a chance that goes as 1 / (e + 1).
    trained: by the last router of a small model that learned for 100 steps to count on, without a balance loss.
    """
    if routing != "trained":
        chances = torch.arange(1, experts + 1, dtype=torch.float64) ** -(1.0 if routing == "skewed" else 0.0)
        generator = torch.Generator().manual_seed(7)
        return torch.multinomial(chances.expand(tokens, -1), top_k, generator=generator)
    model = _learner(experts, top_k)
    unseen, _ = progressions(VOCABULARY, -(-tokens // LENGTH), LENGTH, STEPS, CPU)
    with torch.no_grad():
        model(unseen)
    last = model.layers[-1].ffn
    assert isinstance(last, MixtureLayer)
    assert last.last_chosen is not None
    return last.last_chosen[:tokens]


@cache
def _learner(experts: int, top_k: int) -> Decoder:
    ffn = MoE(num_experts=experts, num_experts_per_tok=top_k, intermediate_size=32)
    spec = model_of("router", 64, mixer=heads(4, 4, 16), ffn=ffn, layers=2, vocab=VOCABULARY)
    return trained(spec, steps=STEPS, length=LENGTH, device=CPU)[0]


def load(chosen: Tensor, experts: int) -> float:
    """Tokens of the busiest expert over those of the mean one."""
    return float(chosen.flatten().bincount(minlength=experts).max()) * experts / chosen.numel()
