"""The active parameters of a mixture of experts."""

from __future__ import annotations

from llmbench.learn.exercises.question import Asked, Draw, Model, Question
from llmbench.sizing.params import count_parameters


def ask(draw: Draw) -> Asked:
    """Ask for the exact number of active parameters."""
    layers, experts, chosen = draw.pick(32, 24, 28, 36), draw.pick(8, 4, 16, 32), draw.pick(2, 1, 4)
    fields = {"num_hidden_layers": layers, "num_experts": experts, "num_experts_per_tok": chosen}
    model = Model("mixtral-8x7b", {} if (layers, experts, chosen) == (32, 8, 2) else fields)
    counted = count_parameters(model.spec)
    expert = 3 * 4096 * 14336
    return Asked(
        text=f"A Mixtral model has {layers} layers, hidden size 4,096, 32 query heads and 8 KV heads of width 128, "
        f"{experts} experts per layer, of which each token uses {chosen}, a router without bias, SwiGLU experts of "
        "width 14,336, and 32,000 tokens in its vocabulary. It has RMSNorms before attention, before the experts and "
        "after the last layer. There are no biases. Embedding and head are two matrices. How many parameters are "
        "active for one token? Count the whole embedding table and the whole head.",
        kind="count",
        answer=counted.active,
        tolerance=0.0,
        solution=f"all parameters {counted.total:,} − {layers} layers × {experts - chosen} unused experts × "
        f"{expert:,} = {counted.active:,}. An expert has 3 × 4,096 × 14,336 parameters.",
        command=f"llmbench params {model.words}",
        mistakes=(
            ("these are all parameters, not the active ones", counted.total),
            ("the whole router is active", counted.active - layers * 4096 * (experts - chosen)),
        ),
    )


EXERCISE = Question(
    "active parameters of a mixture of experts",
    ask,
    "All parts are active except the experts that the token does not use.",
)
