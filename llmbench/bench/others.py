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
from llmbench.model.implementations.kinds import ExpertWeights, Implementation, Mask, Scores, Seen
from llmbench.model.implementations.plain import STANDARD, activation, glu
from llmbench.spec.ffn import MoE

__all__ = ["WAYS"]


def compiled_flex() -> Implementation:
    """FlexAttention as its users have it: compiled for one shape, and the blocks that a mask leaves out found once, for
    sequences without gaps. (`impl="flex"` of a model finds them at every call.)"""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    fast = compiled(flex_attention)
    blocks: dict[tuple[int, int], Any] = {}

    def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
        mask = seen.mask
        if not mask.plain or scores.sinks is not None or scores.soft_cap is not None or scores.bias is not None:
            raise CannotRunError("flex is timed on whole sequences, with slopes at most", hint="use sdpa")
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


def _grouped(x: Tensor, weights: Tensor, chosen: Tensor, held: ExpertWeights, moe: MoE) -> Tensor:
    """Tokens [t, D] sorted by their experts, each matrix of all experts as one grouped product: [t, D]."""
    if any(bias is not None for bias in (held.gate_bias, held.up_bias, held.down_bias)) or moe.router.on_input:
        raise CannotRunError("grouped is for experts without biases, weighted on their output", hint="use standard")
    choices = chosen.flatten()
    order = choices.argsort(stable=True)
    numbers = torch.arange(moe.num_experts, device=x.device)
    ends = (choices[:, None] == numbers).sum(0).cumsum(0).to(torch.int32)
    rows = x[order // chosen.shape[1]]
    up = F.grouped_mm(rows, held.up.transpose(1, 2), offs=ends)
    if held.gate is None:
        inner = activation(moe.activation)(up)
    else:
        inner = glu(F.grouped_mm(rows, held.gate.transpose(1, 2), offs=ends), up, moe.activation)
    made = F.grouped_mm(inner, held.down.transpose(1, 2), offs=ends)
    back = torch.empty_like(made).index_copy(0, order, made)
    return (back.view(*weights.shape, -1) * weights[..., None].to(made.dtype)).sum(1)


def _turned_fused() -> Implementation:
    """Flash attention, and rotations in one launch; the rest plain torch."""
    return implementation("flash")._replace(name="rope-fused", rotate=implementation("fused").rotate)


WAYS: dict[str, Callable[[], Implementation]] = {
    "flex": compiled_flex,
    "grouped": lambda: STANDARD._replace(name="grouped", experts=_grouped),
    "rope-fused": _turned_fused,
}
"""Ways to compute that are rivals here, made when they are asked for."""
