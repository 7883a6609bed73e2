"""The candidate `flex`: compiled FlexAttention, which builds its block mask once.

B batch, N query heads, H head dim, S query length, T key length.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from llmbench.bench.extra_candidates.compiled import compiled
from llmbench.errors import CannotRunError
from llmbench.model.implementations.interface import Implementation, Mask, Scores, Seen, Traits
from llmbench.model.implementations.plain import STANDARD

__all__ = ["build"]


def build(compiler: Callable[..., Any] = compiled) -> Implementation:
    """Return an implementation that computes attention with compiled FlexAttention, for sequences without gaps.

    The block mask is built once per pair of query length and key length. A model with `impl="flex"` builds the block
    mask in every call instead.
    """
    blocks: dict[tuple[int, int], Any] = {}

    @cache
    def fast() -> Callable[..., Any]:
        from torch.nn.attention.flex_attention import flex_attention

        return compiler(flex_attention)

    def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
        mask = seen.mask
        if not mask.plain or scores.sinks is not None or scores.soft_cap is not None or scores.bias is not None:
            raise CannotRunError(
                "flex can be timed only on whole sequences without sinks, soft cap and bias", hint="use sdpa"
            )
        if q.requires_grad and q.device.type == "cpu":
            raise CannotRunError("FlexAttention has no backward pass on a CPU", hint="use sdpa")
        size = q.shape[2], seen.k.shape[2]
        if size not in blocks:
            blocks[size] = None if mask.everything else _block_mask(mask, size, q.device)
        out: Tensor = fast()(
            q,
            seen.k,
            seen.v,
            score_mod=_alibi_score(scores.slopes),
            block_mask=blocks[size],
            scale=scores.scale,
            enable_gqa=seen.k.shape[1] != q.shape[1],
        )
        return out

    return STANDARD._replace(name="flex", attend=attend, traits=Traits(compiled="attention"))


def _block_mask(mask: Mask, size: tuple[int, int], device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    def allowed(b: Tensor, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return mask.sees(s, t)

    return create_block_mask(allowed, None, None, *size, device=str(device))


def _alibi_score(slopes: Tensor | None) -> Any:
    if slopes is None:
        return None

    def change(score: Tensor, b: Tensor, h: Tensor, s: Tensor, t: Tensor) -> Tensor:
        return score + slopes[h] * (t - s)

    return change
