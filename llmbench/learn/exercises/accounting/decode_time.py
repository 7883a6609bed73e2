"""The least time of one decoding step."""

from __future__ import annotations

from llmbench.learn.exercises.accounting.models import llama, llama_text
from llmbench.learn.exercises.question import Asked, Draw, Question
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import find_device


def ask(draw: Draw) -> Asked:
    """Ask for the time that the memory bandwidth allows."""
    model = llama(draw)
    seq = draw.pick(8192, 4096, 6144, 16384)
    device = find_device(draw.pick("h100-sxm", "a100-80gb-sxm", "l40s", "h200", "rtx-4090"))
    spec = model.spec
    assert device.memory_bandwidth_bytes_per_s is not None
    rate = device.memory_bandwidth_bytes_per_s.value
    weights = 2 * (count_parameters(spec).total - spec.vocab_size * spec.hidden_size)
    cache = kv_cache(spec, seq).bytes_total
    return Asked(
        text=f"{llama_text(model)} It decodes one sequence, with {seq:,} tokens in the KV cache, in bf16. The device "
        f"reads {rate / 1e9:,.0f} GB/s. What is the least time of one step? Each weight matrix and norm is read once, "
        "of the embedding only one row, and the whole cache is read once. Leave out that row and all writes.",
        kind="seconds",
        answer=(weights + cache) / rate,
        tolerance=0.002,
        solution=f"({weights:,} bytes of weights without the embedding + {cache:,} bytes of cache) / {rate:,.0f} "
        f"bytes/s = {1e3 * (weights + cache) / rate:.3f} ms",
        command=f"llmbench kvcache {model.words} --seq {seq}",
        mistakes=(
            ("the cache is missing", weights / rate),
            ("bf16 has 2 bytes per number", (weights + cache) / 2 / rate),
            (
                "only one row of the embedding is read",
                (weights + cache + 2 * spec.vocab_size * spec.hidden_size) / rate,
            ),
        ),
    )


EXERCISE = Question(
    "least time of a decoding step",
    ask,
    "A step with one token multiplies each matrix with one vector, so reading the bytes takes longer than computing.",
)
