"""Rivals that no model of ours runs on: FlexAttention compiled, with its block mask made beforehand, and a mixture of
experts on torch's grouped products.

B batch, N query heads, S query length, T key length, H head dim, t tokens, D hidden, F intermediate, E experts, k a
token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.bench.compiling import compiled
from llmbench.errors import CannotRunError
from llmbench.model.implementations import implementation
from llmbench.model.implementations.interface import ExpertWeights, Implementation, Mask, Scores, Seen
from llmbench.model.implementations.plain import STANDARD, activation, glu
from llmbench.spec.ffn import Activation, MoE

__all__ = ["FLEX", "WAYS", "compiled_flex", "grouped_experts"]


def compiled_flex(compiler: Callable[..., Any] = compiled) -> Implementation:
    """FlexAttention as its users have it: compiled for one shape, and the blocks that a mask leaves out found once, for
    sequences without gaps. (`impl="flex"` of a model finds them at every call.)"""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    fast = compiler(flex_attention)
    blocks: dict[tuple[int, int], Any] = {}

    def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
        mask = seen.mask
        if not mask.plain or scores.sinks is not None or scores.soft_cap is not None or scores.bias is not None:
            raise CannotRunError("flex is timed on whole sequences, with slopes at most", hint="use sdpa")
        if q.requires_grad and q.device.type == "cpu":
            raise CannotRunError("FlexAttention has no backward pass on a CPU", hint="use sdpa")
        size = q.shape[2], seen.k.shape[2]
        if size not in blocks:
            found = None if mask.everything else create_block_mask(_seen_by(mask), None, None, *size, device=q.device)
            blocks[size] = found
        out: Tensor = fast(
            q,
            seen.k,
            seen.v,
            score_mod=_sloped(scores.slopes),
            block_mask=blocks[size],
            scale=scores.scale,
            enable_gqa=seen.k.shape[1] != q.shape[1],
        )
        return out

    return STANDARD._replace(name="flex", attend=attend)


def _seen_by(mask: Mask) -> Any:
    def allowed(b: Tensor, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return mask.sees(s, t)

    return allowed


def _sloped(slopes: Tensor | None) -> Any:
    if slopes is None:
        return None

    def change(score: Tensor, b: Tensor, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return score + slopes[h] * (t - s)

    return change


def grouped_experts(x: Tensor, weights: Tensor, chosen: Tensor, held: ExpertWeights, name: Activation) -> Tensor:
    """Experts without biases on tokens [t, D]: sorted by their experts, each matrix of all experts as one grouped
    product, and a weighted sum back, [t, D]. Nothing is learnt on the host, and nothing is larger than the copies of
    the tokens [t·k, D]."""
    choices, order = chosen.flatten().sort(stable=True)
    experts = torch.arange(len(held.up), device=x.device, dtype=choices.dtype)
    ends = torch.searchsorted(choices, experts, right=True).to(torch.int32)
    rows = x[order // chosen.shape[1]]
    up = F.grouped_mm(rows, held.up.mT, offs=ends)
    inner = activation(name)(up) if held.gate is None else glu(F.grouped_mm(rows, held.gate.mT, offs=ends), up, name)
    made = F.grouped_mm(inner, held.down.mT, offs=ends)
    back = torch.empty_like(made).index_copy_(0, order, made).view(*chosen.shape, -1)
    return torch.bmm(weights.to(back.dtype)[:, None], back)[:, 0]


def _grouped(x: Tensor, weights: Tensor, chosen: Tensor, held: ExpertWeights, moe: MoE) -> Tensor:
    """`grouped_experts`, for mixtures that it computes."""
    if any(bias is not None for bias in (held.gate_bias, held.up_bias, held.down_bias)) or moe.router.on_input:
        raise CannotRunError("grouped is for experts without biases, weighted on their output", hint="use standard")
    if moe.zero_experts or moe.capacity_factor is not None or moe.expert_capacity is not None:
        raise CannotRunError("grouped has an expert compute every choice of every token", hint="use standard")
    return grouped_experts(x, weights, chosen, held, moe.activation)


def _turned_fused() -> Implementation:
    """Flash attention, and rotations in one launch; the rest plain torch."""
    return implementation("flash")._replace(name="rope-fused", rotate=implementation("fused").rotate)


FLEX = "flex"

WAYS: dict[str, Callable[[], Implementation]] = {
    FLEX: compiled_flex,
    "grouped": lambda: STANDARD._replace(name="grouped", experts=_grouped),
    "rope-fused": _turned_fused,
}
"""Ways to compute that are rivals here, made when they are asked for."""
