"""The time of a training run."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.models import gpt, gpt_text
from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.flops import count_flops
from llmbench.sizing.workload import Workload


def ask(draw: Draw) -> Asked:
    """Ask for the days on some devices at a model FLOPs utilization."""
    model = gpt(draw)
    steps, batch = draw.pick(400_000, 100_000, 200_000, 300_000), draw.pick(1024, 256, 512, 768)
    gpus, peak = draw.pick(1, 8, 16, 64), draw.pick(19.5e12, 989.4e12, 312e12)
    mfu = draw.pick(0.5, 0.3, 0.35, 0.4, 0.45)
    flops = count_flops(model.spec, Workload.train(1024, masked_pairs=True, attention="standard"))
    days = flops.total * batch * steps / (gpus * peak * mfu) / 86400
    return Asked(
        text=f"{gpt_text(model)} It is trained for {steps:,} steps with {batch:,} sequences of 1,024 tokens each, on "
        f"{gpus} device{'s' if gpus > 1 else ''} with a peak of {peak / 1e12:g} TFLOP/s, at a model FLOPs utilization "
        f"(MFU) of {mfu:.0%}. How many days does it take? Count as in forward-flops; the backward pass needs twice "
        "the FLOPs of the forward pass.",
        kind="days",
        answer=days,
        tolerance=0.01,
        solution=f"{flops.total:,} FLOPs per sequence × {batch:,} × {steps:,} / ({gpus} × {peak:g} FLOP/s × {mfu:g}) "
        f"/ 86,400 s = {days:,.4f} days",
        command=f"llmbench flops {model.words} --phase train --seq 1024 --attention full",
        mistakes=(
            ("the backward pass is missing", days / 3),
            ("at 100% utilization", days * mfu),
            ("6·N per token leaves out attention scores and the head", days * flops.rule / flops.total),
        ),
    )


EXERCISE = Question(
    "days of a training run at a given MFU",
    ask,
    "Solve forward-flops first. MFU is the share of the peak that the FLOPs of the model reach.",
)
