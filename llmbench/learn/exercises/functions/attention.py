"""The reference of the attention exercises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """Return the attention of the PyTorch model for q [B, N, S, H], k and v [B, K, T, H].

    The queries are the last S tokens.
    """
    import torch

    from llmbench.model.implementations.interface import Given, Mask, Scores
    from llmbench.model.implementations.plain import attend

    keys = torch.arange(k.shape[2])[None]
    mask = Mask(keys[:, -q.shape[2] :], keys, causal, None, None, plain=not causal)
    return attend(q, Given(k, v, mask), Scores(q.shape[-1] ** -0.5))
