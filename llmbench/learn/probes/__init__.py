"""Probes: figures about the inside of a model while it trains. Each file of this package has the figures of one kind.

`FIGURES` lists all of them. The definition of a figure is the docstring of its function.
"""

from __future__ import annotations

from collections.abc import Callable

from llmbench.learn.probes import attention, experts, gradients, tokens, weights
from llmbench.learn.probes.observer import Observation, Observer, PerLayer

__all__ = ["FIGURES", "Observation", "Observer", "PerLayer"]

FIGURES: dict[str, Callable[[Observation], PerLayer]] = {
    "gradient_norm": gradients.gradient_norm,
    "update_ratio": gradients.update_ratio,
    "entropy": attention.entropy,
    "normalised_entropy": attention.normalised_entropy,
    "entropy_floor": attention.entropy_floor,
    "largest_logit": attention.largest_logit,
    "token_cosine": tokens.token_cosine,
    "token_rank": tokens.token_rank,
    "qk_rank": weights.qk_rank,
    "stable_rank": weights.stable_rank,
    "condensation": weights.condensation,
    "largest_load": experts.largest_load,
    "load_entropy": experts.load_entropy,
}
"""Each figure by its name: one number per layer, or one number per head and layer."""
