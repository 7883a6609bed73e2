"""How sharp attention is. A probability of 0 has the entropy 0.

Dimensions: B sequences, N heads, S queries, T keys.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from llmbench.learn.probes.observer import Observation
from llmbench.model.attention_maps import AttentionMap

__all__ = ["entropy", "entropy_floor", "floor", "largest_logit", "normalised_entropy"]


def entropy(seen: Observation) -> list[list[float]]:
    """Return -Σ p ln p in nats for each head, as the mean over all queries that see at least two keys."""
    return [[] if map is None else _per_head(_entropy(map), map) for map in seen.maps]


def normalised_entropy(seen: Observation) -> list[list[float]]:
    """Return the entropy divided by ln(number of keys that the query sees) for each head, as the mean over queries.

    1: all keys have equal weight. 0: one key has all the weight.
    """
    return [[] if map is None else _per_head(_entropy(map) / _keys(map).log(), map) for map in seen.maps]


def entropy_floor(seen: Observation) -> list[list[float]]:
    """Return the lowest entropy in nats that logits of the same norm can have, for each head, as the mean over queries.

    The norm σ is that of a query's logits after their mean is subtracted, which does not change the softmax. The
    formula is in `floor`.
    """
    result: list[list[float]] = []
    for map in seen.maps:
        if map is None:
            result.append([])
            continue
        visible, keys = map.logits.isfinite(), _keys(map)
        logits = map.logits.double().where(visible, 0.0)
        centred = (logits - logits.sum(-1, keepdim=True) / keys[..., None]).where(visible, 0.0)
        result.append(_per_head(floor(centred.norm(dim=-1), keys), map))
    return result


def floor(norm: Tensor, keys: Tensor) -> Tensor:
    """Return the lowest entropy of softmax(z), in nats, for logits z of T keys with mean 0 and the given norm σ.

        ln(1 + (T - 1) β) + σ √(T (T - 1)) β / (1 + (T - 1) β),  β = exp(-σ √(T / (T - 1)))

    Source: arXiv 2303.06296, theorem 3.1.
    """
    others = keys - 1
    beta = torch.exp(-norm * (keys / others).sqrt())
    return torch.log1p(others * beta) + norm * (keys * others).sqrt() * beta / (1 + others * beta)


def largest_logit(seen: Observation) -> list[list[float]]:
    """Return the largest input of the softmax of each head."""
    return [[] if map is None else map.largest_logit.tolist() for map in seen.maps]


def _entropy(map: AttentionMap) -> Tensor:
    """Return the entropy [B, N, S] of the probabilities of each query."""
    return torch.special.entr(map.probabilities.double()).sum(-1)


def _keys(map: AttentionMap) -> Tensor:
    """Return the number of keys [B, N, S] that each query sees."""
    return map.logits.isfinite().sum(-1).double()


def _per_head(values: Tensor, map: AttentionMap) -> list[float]:
    """Return the mean of values [B, N, S] for each head, over the queries that see at least two keys."""
    counted = _keys(map) > 1
    totals = values.where(counted, 0.0).sum(dim=(0, 2))
    counts = counted.sum(dim=(0, 2)).double()
    return [total / count if count else math.nan for total, count in zip(totals.tolist(), counts.tolist(), strict=True)]
