"""The share of attention scores in the FLOPs of a forward pass, for a long sequence."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.attention_share import ask_share
from llmbench.learn.exercises.question import Question

EXERCISE = Question(
    "share of attention scores in the FLOPs, long sequence",
    lambda draw: ask_share(draw, draw.pick(16384, 8192, 12288, 32768)),
    "Solve attention-share first. The other products grow with T, the scores grow with T².",
)
