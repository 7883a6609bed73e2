"""The routing of a mixture of experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from llmbench.learn.exercises.function import Function

if TYPE_CHECKING:
    from torch import Tensor

    from llmbench.kernels.kernel import Inputs, Random


def reference(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the routing of the PyTorch model: a softmax over the selected logits, which is the same."""
    from llmbench.model.implementations.plain import route
    from llmbench.spec.ffn import Router

    return route(logits, k, None, Router(scores="softmax_topk"))


def cases(random: Random) -> Iterator[tuple[str, Inputs]]:
    """Yield several numbers of experts and of selected experts."""
    for label, tokens, experts, k, shift in (
        ("5 tokens, 2 of 4 experts", 5, 4, 2, 0.0),
        ("1 of 8 experts", 6, 8, 1, 0.0),
        ("all experts", 4, 3, 3, 0.0),
        ("8 of 64 experts", 7, 64, 8, 0.0),
        ("one token", 1, 8, 2, 0.0),
        ("large logits, for which exp overflows", 4, 8, 2, 100.0),
    ):
        yield label, {"logits": random.normal(tokens, experts, scale=3.0) + shift, "k": k}


EXERCISE = Function(
    summary="routing of tokens to experts: weights and indices",
    signature="moe_routing(logits, k)",
    arguments=("logits [t, E]: one row per token", "k: the number of experts per token"),
    returns="a tuple of two tensors: weights [t, k], and indices [t, k] in int64, the largest weight first",
    formula="p = softmax over the experts of the logits; the k experts with the largest p; weights = p of these "
    "experts, divided by their sum",
    source="Shazeer et al., arXiv 1701.06538; Mixtral, arXiv 2401.04088",
    hint="torch.topk returns values and indices, the largest first. `llmbench worked moe` shows every number.",
    reference=reference,
    cases=cases,
)
