"""The matrices of each layer.

Dimensions: D hidden size, N query heads, H head dimension.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmbench.learn.probes.observer import Observation
from llmbench.learn.probes.tokens import effective_rank

__all__ = ["condensation", "qk_rank", "stable_rank"]

SIMILAR = 0.9
"""The cosine above which two neurons count as the same."""


def qk_rank(seen: Observation) -> list[list[float]]:
    """Return the effective rank of W_Qᵀ W_K [D, D] of each query head. It is at most H.

    With grouped heads, several query heads share a matrix W_K. A layer without such matrices has an empty list.
    """
    ranks: list[list[float]] = []
    for index in range(len(seen.streams)):
        attention = getattr(seen.model.layers[index], "attention", None)
        q, k = (getattr(attention, name, None) for name in ("q_proj", "k_proj"))
        map = seen.maps[index]
        if map is None or not isinstance(q, nn.Linear) or not isinstance(k, nn.Linear):
            ranks.append([])
            continue
        heads = map.probabilities.shape[1]
        queries = _matrix(q).view(heads, -1, q.in_features)
        keys = _matrix(k).view(-1, queries.shape[1], k.in_features)
        keys = keys.repeat_interleave(heads // len(keys), dim=0)
        # With W_Qᵀ = A R and W_Kᵀ = B S, the singular values of W_Qᵀ W_K are those of R Sᵀ [H, H].
        triangles = [torch.linalg.qr(matrix.mT, mode="r").R for matrix in (queries, keys)]
        ranks.append(effective_rank(torch.linalg.svdvals(triangles[0] @ triangles[1].mT)).tolist())
    return ranks


def stable_rank(seen: Observation) -> list[float]:
    """Return ‖W‖F² / ‖W‖₂² as the mean over the matrices of each layer."""
    ranks = []
    for layer in seen.model.layers:
        found = []
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                singular = torch.linalg.svdvals(_matrix(module))
                found.append(float(singular.square().sum() / singular[0].square()))
        ranks.append(sum(found) / len(found) if found else 0.0)
    return ranks


def condensation(seen: Observation) -> list[float | None]:
    """Return the share of pairs of neurons of the feed-forward whose input weights have |cosine| > 0.9.

    Under a small initialisation, neurons first condense to few directions (arXiv 2105.11686). None: the layer has no
    feed-forward of this form.
    """
    shares: list[float | None] = []
    for layer in seen.model.layers:
        inner = getattr(getattr(layer, "ffn", None), "up_proj", None)
        if not isinstance(inner, nn.Linear):
            shares.append(None)
            continue
        unit = F.normalize(_matrix(inner), dim=-1)
        neurons = len(unit)
        close = (unit @ unit.mT).abs() > SIMILAR
        pairs = int(close.fill_diagonal_(False).sum())  # a neuron and itself are no pair
        shares.append(pairs / (neurons * (neurons - 1)))
    return shares


def _matrix(module: nn.Linear) -> Tensor:
    """Return the weights [outputs, inputs] of a linear module in fp64."""
    return module.weight.detach().double()
