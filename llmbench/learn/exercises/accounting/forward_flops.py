"""The FLOPs of a forward pass."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.models import gpt, gpt_text
from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.flops import count_flops
from llmbench.sizing.workload import Workload

RULES = "Count matrix products only, a multiply-add as 2 FLOPs, all (query, key) pairs, and logits at every position."


def ask(draw: Draw) -> Asked:
    """Ask for the FLOPs of one sequence."""
    model, seq = gpt(draw), draw.pick(1024, 256, 512, 768)
    spec = model.spec
    flops = count_flops(spec, Workload.prefill(seq, masked_pairs=True))
    L, D, V = spec.num_hidden_layers, spec.hidden_size, spec.vocab_size
    return Asked(
        text=f"{gpt_text(model)} How many FLOPs does a forward pass over one sequence of {seq:,} tokens need? {RULES}",
        kind="flops",
        answer=flops.total,
        tolerance=0.001,
        solution=f"{L} layers × (24 × {seq:,} × {D:,}² + 4 × {seq:,}² × {D:,}) + 2 × {seq:,} × {D:,} × {V:,} = "
        f"{flops.total:,}",
        command=f"llmbench flops {model.words} --seq {seq} --attention full",
        mistakes=(
            (
                "2·N per token leaves out attention scores and the head",
                flops.rule,
            ),
            ("a multiply-add is 2 FLOPs", flops.total // 2),
            ("the scores q kᵀ and the product with v are missing", flops.total - flops.attention),
            ("the head is missing", flops.total - 2 * seq * D * V),
        ),
    )


EXERCISE = Question(
    "FLOPs of a forward pass",
    ask,
    "A product of [m, k] and [k, n] needs 2·m·k·n FLOPs. Sum the products of one layer, then add the head.",
)
