"""The number of parameters of a GPT-2 model."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.models import gpt, gpt_text
from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.params import count_parameters


def ask(draw: Draw) -> Asked:
    """Ask for the exact total."""
    model = gpt(draw)
    spec, counted = model.spec, count_parameters(model.spec)
    L, D, V = spec.num_hidden_layers, spec.hidden_size, spec.vocab_size
    layer = f"12 × {D:,}² + 13 × {D:,}"
    return Asked(
        text=f"{gpt_text(model)} How many parameters does it have?",
        kind="count",
        answer=counted.total,
        tolerance=0.0,
        solution=f"vocabulary {V:,} × {D:,} + positions 1,024 × {D:,} + {L} layers × ({layer}) + last norm 2 × {D:,} "
        f"= {counted.total:,}. A layer has 4 D² + 4 D in attention, 8 D² + 5 D in the feed-forward, and 4 D in two "
        "norms.",
        command=f"llmbench params {model.words} --explain",
        mistakes=(
            ("12·L·D² leaves out embeddings, biases and norms", counted.rule_12_l_d2),
            ("the head shares the matrix of the embedding, so it counts once", counted.total + V * D),
            ("the position table is missing", counted.total - 1024 * D),
            ("the biases and norms are missing", (V + 1024) * D + 12 * L * D * D),
        ),
    )


EXERCISE = Question(
    "parameters of a GPT-2 model",
    ask,
    "Count one layer first: attention has 4 matrices, the feed-forward has 2. Add biases, norms and the two tables.",
)
