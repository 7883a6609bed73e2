"""The utilization of a training run."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.models import gpt, gpt_text
from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.flops import count_flops
from llmbench.sizing.workload import Workload


def ask(draw: Draw) -> Asked:
    """Ask for the share of the peak that a run reaches."""
    model = gpt(draw)
    gpus, peak = draw.pick(8, 1, 16, 64), draw.pick(312e12, 989.4e12)
    share = draw.pick(0.42, 0.31, 0.36, 0.48, 0.53)
    flops = count_flops(model.spec, Workload.train(1024, masked_pairs=True, attention="standard"))
    rate = round(share * gpus * peak / flops.per_token, -2)
    answer = rate * flops.per_token / (gpus * peak)
    return Asked(
        text=f"{gpt_text(model)} A training run with sequences of 1,024 tokens processes {rate:,.0f} tokens per "
        f"second on {gpus} device{'s' if gpus > 1 else ''} with a peak of {peak / 1e12:g} TFLOP/s each. What is its "
        "model FLOPs utilization (MFU)? Count as in forward-flops; the backward pass needs twice the FLOPs of the "
        "forward pass.",
        kind="share",
        answer=answer,
        tolerance=0.01,
        solution=f"{flops.per_token:,.0f} FLOPs per token × {rate:,.0f} tokens/s / ({gpus} × {peak:g} FLOP/s) = "
        f"{answer:.2%}",
        command=f"llmbench flops {model.words} --phase train --seq 1024 --attention full",
        mistakes=(
            ("the backward pass is missing", answer / 3),
            ("6·N per token leaves out attention scores and the head", answer * flops.rule / flops.total),
        ),
    )


EXERCISE = Question(
    "MFU of a training run",
    ask,
    "MFU is the FLOPs of the model per second, divided by the peak of all devices (PaLM, arXiv 2204.02311, appendix "
    "B).",
)
