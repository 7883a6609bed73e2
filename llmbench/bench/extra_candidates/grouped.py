"""The candidate `grouped`: mixtures of experts with torch's grouped matrix products.

t tokens, D hidden, F intermediate, E experts, k experts per token.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.errors import CannotRunError
from llmbench.model.implementations.interface import ExpertWeights, Implementation
from llmbench.model.implementations.plain import STANDARD, activation, glu
from llmbench.spec.ffn import Activation, MoE

__all__ = ["build", "grouped_experts", "mixture"]


def grouped_experts(x: Tensor, weights: Tensor, chosen: Tensor, experts: ExpertWeights, name: Activation) -> Tensor:
    """Compute experts without biases on tokens [t, D], and return their weighted sum [t, D].

    The tokens are sorted by expert. Then one grouped product per weight matrix (two matrices, or three with a gate)
    computes all experts. Nothing is copied to the host. The temporaries have t·k rows.
    """
    choices, order = chosen.flatten().sort(stable=True)
    numbers = torch.arange(len(experts.up), device=x.device, dtype=choices.dtype)
    ends = torch.searchsorted(choices, numbers, right=True).to(torch.int32)
    rows = x[order // chosen.shape[1]]
    up = F.grouped_mm(rows, experts.up.mT, offs=ends)
    if experts.gate is None:
        inner = activation(name)(up)
    else:
        inner = glu(F.grouped_mm(rows, experts.gate.mT, offs=ends), up, name)
    outputs = F.grouped_mm(inner, experts.down.mT, offs=ends)
    back = torch.empty_like(outputs).index_copy_(0, order, outputs).view(*chosen.shape, -1)
    return torch.bmm(weights.to(back.dtype)[:, None], back)[:, 0]


def mixture(x: Tensor, weights: Tensor, chosen: Tensor, experts: ExpertWeights, moe: MoE) -> Tensor:
    """Compute a mixture of experts with `grouped_experts`. Raises CannotRunError for a mixture with biases, input-side
    router weights, zero experts or an expert capacity."""
    biases = experts.gate_bias, experts.up_bias, experts.down_bias
    if any(bias is not None for bias in biases) or moe.router.on_input:
        raise CannotRunError("grouped supports no biases and no input-side router weights", hint="use standard")
    if moe.zero_experts or moe.capacity_factor is not None or moe.expert_capacity is not None:
        raise CannotRunError("grouped supports no zero experts and no expert capacity", hint="use standard")
    return grouped_experts(x, weights, chosen, experts, moe.activation)


def build() -> Implementation:
    """Return plain torch with grouped products for the experts."""
    return STANDARD._replace(name="grouped", experts=mixture)
