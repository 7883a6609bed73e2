"""Warnings about a training that goes wrong, from the figures of the probes.

Each rule fires on failures that were measured, and is silent on the start of a healthy training. For example, the
tokens of a healthy 12-layer model may have a mean cosine of 0.993 at step 10. So a rule must hold for `LASTING` steps,
and gradients or logits must agree with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from llmbench.learn.probes.observer import PerLayer

__all__ = ["RULES", "Warning", "warnings_of"]

LASTING = 50
"""The number of steps for which a rule must hold."""

Figures = Mapping[str, PerLayer]


class Warning(NamedTuple):
    """A rule that fired. `step`: the first step of the time in which it holds."""

    name: str
    step: int
    text: str


def rank_collapse(figures: Figures, first: Figures) -> bool:
    """Return whether all tokens have nearly the same direction in the upper half of the layers, and the first layer
    gets nearly no gradient.

    Mean cosine above 0.99, and gradient of the first layer below 1% of that of the last one. Rank collapse of post-norm
    models: arXiv 2206.03126; gradients that vanish with it: arXiv 2004.08249.
    """
    cosines, norms = figures["token_cosine"], figures["gradient_norm"]
    return min(cosines[len(cosines) // 2 :]) > 0.99 and norms[0] < 0.01 * norms[-1]  # type: ignore


def entropy_collapse(figures: Figures, first: Figures) -> bool:
    """Return whether more than half of the heads of a layer attend to a single key, and their logits have grown.

    Normalised entropy below 0.05, and a largest logit of at least twice that of the first observation. A single sharp
    head is normal. Source: arXiv 2303.06296.
    """
    for entropies, logits, start in zip(
        figures["normalised_entropy"], figures["largest_logit"], first["largest_logit"], strict=True
    ):
        sharp = sum(entropy < 0.05 for entropy in entropies)  # type: ignore
        if entropies and 2 * sharp > len(entropies) and max(logits) >= 2 * max(start):  # type: ignore
            return True
    return False


RULES: dict[str, tuple[Callable[[Figures, Figures], bool], str]] = {
    "rank collapse": (rank_collapse, "the tokens of a sequence become equal, and the first layer stops learning"),
    "entropy collapse": (entropy_collapse, "more than half of the heads of a layer attend to a single key"),
}
"""The function of each rule, of the figures of a step and of the first step, and what it means."""


def warnings_of(observations: Mapping[int, Figures]) -> list[Warning]:
    """Return the rules that held at all observed steps of a time of at least `LASTING` steps."""
    found = []
    steps = sorted(observations)
    for name, (rule, text) in RULES.items():
        since: int | None = None
        for step in steps:
            holds = rule(observations[step], observations[steps[0]])
            since = (step if since is None else since) if holds else None
            if since is not None and step - since >= LASTING:
                found.append(Warning(name, since, text))
                break
    return found
