"""The largest batch whose training step fits."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.models import gpt, gpt_text
from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.training import training_memory

ROOM = 80 * 10**9
"""The memory of the device of the question, in bytes."""


def ask(draw: Draw) -> Asked:
    """Ask for the largest batch. The peaks of two batches are given."""
    model = gpt(draw)
    spec = model.spec

    def peak(batch: int) -> int:
        return training_memory(spec, 1024, micro_batch=batch).peak_bytes

    first, second = 8, 12
    assert peak(second) <= ROOM, "every model of `gpt` is small enough"
    low, high = second, 2 * second
    while peak(high) <= ROOM:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if peak(middle) <= ROOM else (low, middle)
    each = (peak(second) - peak(first)) // (second - first)
    return Asked(
        text=f"{gpt_text(model)} It is trained in mixed precision with AdamW on sequences of 1,024 tokens, with flash "
        f"attention. The peak of a step is {peak(first):,} bytes for a batch of {first}, and {peak(second):,} bytes "
        f"for a batch of {second}. The device has {ROOM:,} bytes. What is the largest batch?",
        kind="number",
        answer=low,
        tolerance=0.0,
        solution=f"each sequence adds {each:,} bytes, so {first} + floor(({ROOM:,} − {peak(first):,}) / {each:,}) = "
        f"{first + (ROOM - peak(first)) // each}",
        command=f"llmbench memory {model.words} --seq 1024 --batch {low}",
        mistakes=(("80 GB are not 80 GiB", first + (80 * 2**30 - peak(first)) // each),),
    )


EXERCISE = Question(
    "largest batch that fits into 80 GB",
    ask,
    "Weights and states do not depend on the batch. Activations and logits are proportional to it.",
)
