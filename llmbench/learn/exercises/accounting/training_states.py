"""The memory of weights, gradients and optimizer states."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.models import gpt, gpt_text
from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.params import count_parameters
from llmbench.sizing.training import training_memory

PARTS = ("weights", "gradients", "optimizer")


def ask(draw: Draw) -> Asked:
    """Ask for the exact bytes, without activations."""
    model = gpt(draw)
    full = training_memory(model.spec, 1024).full_bytes
    states, parameters = sum(full[part] for part in PARTS), count_parameters(model.spec).total
    return Asked(
        text=f"{gpt_text(model)} It is trained in mixed precision with AdamW: weights and gradients in bf16, a master "
        "copy of the weights and AdamW's two states in fp32. How many bytes do these five take together?",
        kind="bytes",
        answer=states,
        tolerance=0.0,
        solution=f"{parameters:,} parameters × (2 + 2 + 4 + 4 + 4) bytes = {states:,}",
        command=f"llmbench memory {model.words} --seq 1024",
        mistakes=(
            ("the master copy or one of AdamW's two states is missing", states - 4 * parameters),
            ("the gradients are missing", states - 2 * parameters),
        ),
    )


EXERCISE = Question(
    "bytes of weights, gradients and AdamW's states",
    ask,
    "Solve parameters first. Then add the bytes per parameter: ZeRO (arXiv 1910.02054), section 3.1, has the same sum.",
)
