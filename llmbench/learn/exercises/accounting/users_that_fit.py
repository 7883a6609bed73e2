"""The number of users whose caches fit beside the weights."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.models import llama, llama_text
from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.params import count_parameters


def ask(draw: Draw) -> Asked:
    """Ask for the largest number of users."""
    model, seq = llama(draw), draw.pick(8192, 4096, 16384, 32768)
    room = draw.pick(80, 48, 64, 141, 192) * 10**9
    weights = 2 * count_parameters(model.spec).total
    cache = kv_cache(model.spec, seq).bytes_total
    return Asked(
        text=f"{llama_text(model)} It has {weights // 2:,} parameters. Weights and KV cache are in bf16. How many "
        f"users with {seq:,} tokens each fit into {room:,} bytes, beside the weights? Leave out everything else.",
        kind="number",
        answer=(room - weights) // cache,
        tolerance=0.0,
        solution=f"floor(({room:,} − {weights:,} bytes of weights) / {cache:,} bytes of a cache) = "
        f"{(room - weights) // cache}",
        command=f"llmbench kvcache {model.words} --seq {seq}",
        mistakes=(
            ("the weights are missing", room // cache),
            ("bf16 has 2 bytes per number", (room - weights // 2) // (cache // 2)),
        ),
    )


EXERCISE = Question(
    "users whose caches fit beside the weights",
    ask,
    "Solve kv-cache first. What the weights leave is for the caches.",
)
