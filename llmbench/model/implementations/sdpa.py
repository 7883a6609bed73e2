"""Attention through torch's scaled_dot_product_attention.

Dimensions: B batch, N query heads, K KV heads, S query length, T key length, H head dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llmbench.errors import CannotRunError
from llmbench.model.implementations.interface import Attend, Mask, Scores, Seen, Traits
from llmbench.model.implementations.plain import STANDARD, latent_by


def _with_backend(backend: str | None) -> Attend:
    """Return an attention function that uses one backend of scaled_dot_product_attention.

    - `backend`: the name of the backend. None: torch chooses the backend.
    """

    def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
        refuse(scores, "sdpa" if backend is None else f"sdpa-{backend}")
        k, v, mask = seen.k, seen.v, seen.mask
        dense = dense_mask(q, mask, scores)
        options: dict[str, Any] = {
            "attn_mask": dense,
            "dropout_p": scores.dropout,
            "is_causal": dense is None and mask.causal,
            "scale": scores.scale,
            "enable_gqa": k.shape[1] != q.shape[1],
        }
        if backend is None:
            return F.scaled_dot_product_attention(q, k, v, **options)
        from torch.nn.attention import SDPBackend, sdpa_kernel

        chosen = {
            "flash": SDPBackend.FLASH_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "efficient": SDPBackend.EFFICIENT_ATTENTION,
        }[backend]
        with sdpa_kernel(chosen):
            try:
                return F.scaled_dot_product_attention(q, k, v, **options)
            except (torch.OutOfMemoryError, torch.AcceleratorError):
                raise  # Both are RuntimeErrors, but neither means that the backend lacks support.
            except RuntimeError as problem:
                reason = str(problem).splitlines()[0]
                raise CannotRunError(
                    f"impl sdpa-{backend} cannot compute this attention on {q.device.type}: {reason}",
                    hint="use sdpa, which chooses a backend",
                ) from None

    return attend


def dense_mask(q: Tensor, mask: Mask, scores: Scores) -> Tensor | None:
    """Return the mask as a tensor [B, 1 or N, S, T]. None if a plain causal mask or no mask suffices.

    The tensor is boolean. If the scores have a bias, the tensor is the bias in the format of q, with -inf for masked
    pairs.
    """
    bias = scores.added(mask)
    if bias is None:
        return None if mask.everything or mask.only_causal else mask.allowed()
    bias = bias.to(q.dtype)
    return bias if mask.everything else bias.masked_fill(~mask.allowed(), -math.inf)


def refuse(scores: Scores, name: str) -> None:
    """Raise CannotRunError if torch's kernels do not support the changes of the scores."""
    if scores.soft_cap is not None:
        raise CannotRunError(f"impl {name} does not support a soft cap on scores", hint="use standard or flex")
    if scores.sinks is not None:
        raise CannotRunError(f"impl {name} does not support attention sinks", hint="use standard or flex")


def refuse_dropout(scores: Scores, name: str) -> None:
    """Raise CannotRunError if the probabilities have dropout, for an implementation without it."""
    if scores.dropout:
        raise CannotRunError(f"impl {name} does not support dropout in attention", hint="use sdpa or standard")


TRAITS = Traits(dense_mask="always", scores_for_uneven_widths_on_cpu=True)

IMPLEMENTATIONS = {
    name: STANDARD._replace(name=name, traits=TRAITS, attend=attend, attend_latent=latent_by(attend))
    for name, attend in {
        "sdpa": _with_backend(None),
        "sdpa-flash": _with_backend("flash"),
        "sdpa-cudnn": _with_backend("cudnn"),
        "sdpa-efficient": _with_backend("efficient"),
    }.items()
}
