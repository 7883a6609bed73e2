"""The share of attention scores in the FLOPs of a forward pass, for a short sequence."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.forward_flops import RULES
from llmbench.learn.exercises.accounting.models import gpt, gpt_text
from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.flops import count_flops
from llmbench.sizing.workload import Workload


def ask_share(draw: Draw, seq: int) -> Asked:
    """Ask for the share at a sequence length."""
    model = gpt(draw)
    spec = model.spec
    flops = count_flops(spec, Workload.prefill(seq, masked_pairs=True))
    L, D = spec.num_hidden_layers, spec.hidden_size
    more = "" if seq <= 1024 else f" Its position table is longer here: {seq:,} rows."
    return Asked(
        text=f"{gpt_text(model)}{more} Which share of the FLOPs of a forward pass over one sequence of {seq:,} tokens "
        f"computes the scores q kᵀ and their product with v? {RULES}",
        kind="share",
        answer=flops.attention / flops.total,
        tolerance=0.01,
        solution=f"{L} × 4 × {seq:,}² × {D:,} = {flops.attention:,} of {flops.total:,} FLOPs: "
        f"{flops.attention / flops.total:.2%}",
        command=f"llmbench flops {model.words} --seq {seq} --attention full",
        mistakes=(
            ("the product with v is missing", flops.attention / 2 / (flops.total - flops.attention / 2)),
            ("the head is missing in the total", flops.attention / (flops.total - 2 * seq * D * spec.vocab_size)),
        ),
    )


EXERCISE = Question(
    "share of attention scores in the FLOPs, short sequence",
    lambda draw: ask_share(draw, draw.pick(1024, 512, 768)),
    "Scores and product with v need 4·T²·D FLOPs per layer. All other products grow with T, not with T².",
)
