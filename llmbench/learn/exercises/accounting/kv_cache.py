"""The size of a KV cache."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.models import llama, llama_text
from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.kvcache import as_heads, kv_cache


def ask(draw: Draw) -> Asked:
    """Ask for the exact bytes of several sequences."""
    model = llama(draw)
    seq, batch = draw.pick(8192, 4096, 6000, 16384, 32768), draw.pick(1, 4, 8, 16)
    spec = model.spec
    cache = kv_cache(spec, seq, batch=batch)
    heads, layers = model.changes.get("num_key_value_heads", 8), spec.num_hidden_layers
    mha = as_heads(spec, "mha")
    assert mha is not None
    return Asked(
        text=f"{llama_text(model)} How many bytes does its KV cache have in bf16, for {batch} sequence"
        f"{'s' if batch > 1 else ''} of {seq:,} tokens?",
        kind="bytes",
        answer=cache.bytes_total,
        tolerance=0.0,
        solution=f"2 (key, value) × {layers} layers × {heads} KV heads × 128 × {seq:,} tokens × {batch} × 2 bytes = "
        f"{cache.bytes_total:,}",
        command=f"llmbench kvcache {model.words} --seq {seq} --batch {batch}",
        mistakes=(
            (
                "only KV heads are stored, not one per query head",
                kv_cache(mha, seq, batch=batch).bytes_total,
            ),
            ("keys and values are both stored", cache.bytes_total // 2),
            ("this is one layer", cache.bytes_total // layers),
        ),
    )


EXERCISE = Question(
    "bytes of a KV cache with grouped heads", ask, "Count the numbers that one layer stores for one token."
)
