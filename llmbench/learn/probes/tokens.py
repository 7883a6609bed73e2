"""How much the tokens of a sequence differ inside the model.

Dimensions: B sequences, S tokens, D hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from llmbench.learn.probes.observer import Observation

__all__ = ["effective_rank", "token_cosine", "token_rank"]


def token_cosine(seen: Observation) -> list[float]:
    """Return the mean cosine of all pairs of different tokens of a sequence, in the residual stream after each layer.

    1: all tokens have the same direction, so the model cannot tell them apart.
    """
    cosines = []
    for stream in seen.streams:
        length = stream.shape[1]
        unit = F.normalize(stream.double(), dim=-1)
        # The sum over all pairs, with each token and itself, is the squared norm of the sum.
        pairs = unit.sum(1).square().sum(-1) - unit.square().sum(dim=(1, 2))
        cosines.append(float((pairs / (length * (length - 1))).mean()))
    return cosines


def token_rank(seen: Observation) -> list[float]:
    """Return the effective rank of the tokens [S, D] of a sequence, in the residual stream after each layer."""
    return [float(effective_rank(torch.linalg.svdvals(stream.double())).mean()) for stream in seen.streams]


def effective_rank(singular: Tensor) -> Tensor:
    """Return exp(H(σ / Σ σ)) of singular values σ [..., K], where H is the entropy (Roy and Vetterli, 2007).

    It is 1 if one direction has all the weight, and K if all K directions have equal weight. 0 for a zero matrix.
    """
    total = singular.sum(-1, keepdim=True)
    shares = singular / total.where(total > 0, 1.0)
    return torch.special.entr(shares).sum(-1).exp().where(total[..., 0] > 0, 0.0)
