"""Claims of a textbook on language models, each with the figure that llmbench computes or measures in its place.

Each topic is one file with the data of its claims. `CLAIMS` has all claims: first those that arithmetic decides, then
those that recorded trainings on a CPU decide, then those that need a GPU. No file here needs torch.
"""

from __future__ import annotations

from typing import NamedTuple

from llmbench.textbook import cache, facts, learning, pointwise, positions, scores, sizes, training, work
from llmbench.textbook.claim import Claim

__all__ = ["CLAIMS", "TOPICS", "Topic"]


class Topic(NamedTuple):
    """A topic: its title, a sentence on what its claims are about, and the claims."""

    title: str
    about: str
    claims: tuple[Claim, ...]


TOPICS: dict[str, Topic] = {
    "scores": Topic(
        "Scores and flash attention",
        "Attention compares every token with every other token. What do these scores cost, and what does flash"
        " attention save?",
        scores.CLAIMS,
    ),
    "cache": Topic(
        "KV cache and shared heads",
        "A model that writes a text keeps the keys and values of all earlier tokens. How much do shared heads save?",
        cache.CLAIMS,
    ),
    "parameters": Topic(
        "Parameters", "Rules of thumb for the size of a model, and the sizes of real models.", sizes.CLAIMS
    ),
    "flops": Topic("FLOPs, experts and cost", "How much work is a token, and what does a training cost?", work.CLAIMS),
    "memory": Topic("Memory of training", "Why does training need so much more memory?", training.CLAIMS),
    "positions": Topic(
        "Positions",
        "How a model knows the order of its tokens, and what happens beyond the trained length.",
        positions.CLAIMS,
    ),
    "pointwise": Topic("Norms and activations", "Small functions between the matrix products.", pointwise.CLAIMS),
    "models": Topic("Published models and GPUs", "Who built what, and how?", facts.CLAIMS),
    "learning": Topic(
        "Learning", "What helps a deep model to learn, and which architecture learns better?", learning.CLAIMS
    ),
}
"""The topics, by the name that the command line takes."""

_ORDER = ("arithmetic", "CPU", "GPU")

CLAIMS: tuple[Claim, ...] = tuple(
    sorted(
        (claim for topic in TOPICS.values() for claim in topic.claims),
        key=lambda claim: _ORDER.index(claim.settled_by),
    )
)
"""All claims. Claims that the same kind of work decides stand together, in the order of the topics."""
