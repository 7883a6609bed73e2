"""torch's scaled_dot_product_attention.

B batch, N query heads, K KV heads, S query length, T key length, H head dim.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.errors import CannotRunError
from llmbench.model.implementations.interface import Attend, Mask, Scores, Seen
from llmbench.model.implementations.plain import STANDARD, latent_by


def _held_to(backend: str | None) -> Attend:
    """torch's scaled_dot_product_attention, free in its choice or held to one backend."""

    def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
        refuse(scores, "sdpa" if backend is None else f"sdpa-{backend}")
        k, v, mask = seen.k, seen.v, seen.mask
        dense = dense_mask(q, mask, scores)
        causal = dense is None and mask.causal
        grouped = k.shape[1] != q.shape[1]
        if backend is None:
            return F.scaled_dot_product_attention(
                q, k, v, attn_mask=dense, is_causal=causal, scale=scores.scale, enable_gqa=grouped
            )
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen = {
            "flash": SDPBackend.FLASH_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
        }[backend]
        with sdpa_kernel(chosen):
            try:
                return F.scaled_dot_product_attention(
                    q, k, v, attn_mask=dense, is_causal=causal, scale=scores.scale, enable_gqa=grouped
                )
            except (torch.OutOfMemoryError, torch.AcceleratorError):  # RuntimeErrors too, and not about the kernel
                raise
            except RuntimeError as problem:
                reason = str(problem).splitlines()[0]
                raise CannotRunError(
                    f"impl sdpa-{backend} cannot run this on {q.device.type}: {reason}",
                    hint="use sdpa, which chooses its kernel",
                ) from None

    return attend


def dense_mask(q: Tensor, mask: Mask, scores: Scores) -> Tensor | None:
    """What is no plain causal mask as a tensor: a bias in q's format, or which pairs are scored, [B, 1 or N, S, T]."""
    bias = scores.added(mask)
    if bias is None:
        return None if mask.everything or mask.only_causal else mask.allowed()
    bias = bias.to(q.dtype)
    return bias if mask.everything else bias.masked_fill(~mask.allowed(), -math.inf)


def refuse(scores: Scores, name: str) -> None:
    """Raise CannotRunError for what torch's kernels do not do to scores."""
    if scores.soft_cap is not None:
        raise CannotRunError(f"impl {name} has no soft cap on scores", hint="use standard or flex")
    if scores.sinks is not None:
        raise CannotRunError(f"impl {name} has no attention sinks", hint="use standard or flex")


IMPLEMENTATIONS = {
    name: STANDARD._replace(name=name, attend=attend, attend_latent=latent_by(attend))
    for name, attend in {
        "sdpa": _held_to(None),
        "sdpa-flash": _held_to("flash"),
        "sdpa-cudnn": _held_to("cudnn"),
        "sdpa-efficient": _held_to("efficient"),
    }.items()
}
