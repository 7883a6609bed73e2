"""How evenly the tokens are distributed over the experts of each layer."""

from __future__ import annotations

import torch

from llmbench.learn.probes.observer import Observation

__all__ = ["largest_load", "load_entropy"]


def largest_load(seen: Observation) -> list[float | None]:
    """Return the number of selections of the most selected expert, divided by the mean over all experts.

    1: all experts have the same load. None: the layer has no experts.
    """
    return [
        None if routing is None else float(routing.load.max()) * routing.probabilities.shape[1]
        for routing in seen.routings
    ]


def load_entropy(seen: Observation) -> list[float | None]:
    """Return -Σ f ln f / ln(number of experts), where f is the share of all selections that an expert got.

    1: all experts have the same load. 0: one expert gets all tokens. None: the layer has no experts.
    """
    return [
        None
        if routing is None
        else float(torch.special.entr(routing.load.double()).sum()) / float(torch.tensor(len(routing.load)).log())
        for routing in seen.routings
    ]
