"""The cross-entropy loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmbench.learn.exercises.function import Function

if TYPE_CHECKING:
    from torch import Tensor

    from llmbench.kernels.kernel import Inputs, Random

IGNORED = -100


def reference(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss that torch computes, which is the loss of the PyTorch model."""
    from torch.nn import functional as F

    return F.cross_entropy(logits, targets, ignore_index=IGNORED)


def cases(random: Random) -> Iterator[tuple[str, Inputs]]:
    """Yield several sizes, large logits, and ignored targets."""
    for label, tokens, vocab, scale in (
        ("4 tokens, vocabulary 8", 4, 8, 1.0),
        ("one token", 1, 5, 1.0),
        ("64 tokens, vocabulary 100", 64, 100, 2.0),
        ("large logits, for which exp overflows", 6, 10, 200.0),
        ("some targets are ignored", 6, 10, 1.0),
    ):
        targets = random.integers(0, vocab, tokens)
        if "ignored" in label:
            targets[::2] = IGNORED
        yield label, {"logits": random.normal(tokens, vocab, scale=scale), "targets": targets}


EXERCISE = Function(
    summary="mean cross-entropy of logits and targets",
    signature="cross_entropy(logits, targets)",
    arguments=("logits [t, V]", "targets [t]: integers; a target of −100 is ignored"),
    returns="a tensor with one number (no dimension)",
    formula="mean over the tokens that are not ignored of log Σ exp(z) − z[target]",
    source="the negative logarithm of the softmax probability of the target",
    hint="torch.logsumexp does not overflow. Divide by the number of tokens that are not ignored.",
    reference=reference,
    cases=cases,
)
