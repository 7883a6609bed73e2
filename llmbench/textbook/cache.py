"""Claims about shared key-value heads: the KV cache, the parameters, and the speed of decoding and training."""

from __future__ import annotations

from functools import partial

from llmbench.report.units import plural
from llmbench.sizing.lower import lower
from llmbench.sizing.params import ONE_TOKEN
from llmbench.spec.catalog import load_bundled
from llmbench.spec.model import ModelSpec
from llmbench.textbook.claim import Claim, Figure, Reading
from llmbench.textbook.models import cache_bytes, gpt2, less, memory_bytes, parameters, shared_heads

__all__ = ["CLAIMS"]

GROUPED = "grouped-query attention, arXiv 2305.13245"
SHARED = f"multi-query attention, arXiv 1911.02150; {GROUPED}"
ASSUMED = "7B, 2,048 tokens; the textbook states no batch size; batch {} is assumed"
FP32 = 2
"""An fp32 cache has this number of times the bytes of a bf16 cache."""


def llama() -> int:
    """Return the parameters of LLaMA-2-7B."""
    return parameters(load_bundled("llama2-7b"))


def saved(model: str, kv_heads: int) -> float:
    """Return how much smaller the cache of a model with `kv_heads` key-value heads is, as a negative share."""
    spec = load_bundled(model)
    return less(cache_bytes(shared_heads(spec, kv_heads), 1024), cache_bytes(spec, 1024))


def share_of_parameters(kv_heads: int) -> float:
    """Return the parameters of LLaMA-2-7B with `kv_heads` key-value heads, divided by those of LLaMA-2-7B."""
    return parameters(shared_heads(load_bundled("llama2-7b"), kv_heads)) / llama()


def served(kv_heads: int, batch: int) -> float:
    """Return how much less memory LLaMA-2-7B needs for serving with `kv_heads` key-value heads, as a negative share."""
    spec = load_bundled("llama2-7b")
    return less(memory_bytes(shared_heads(spec, kv_heads), 2048, batch=batch), memory_bytes(spec, 2048, batch=batch))


def projections(kv_heads: int, *, output: bool) -> float:
    """Return how many weights fewer the projections of GPT-2 have with `kv_heads` key-value heads, as a negative share.

    output: whether the projection of the result counts.
    """

    def weights(spec: ModelSpec) -> int:
        ops = [op for op in lower(spec, ONE_TOKEN) if op.component == "attention" and op.kind == "matmul"]
        return sum(op.matmul_elements for op in ops if output or ".o_proj" not in op.name)

    return less(weights(shared_heads(gpt2(), kv_heads)), weights(gpt2()))


CLAIMS = (
    Claim(
        name="KV elements",
        says="the keys and values of one layer have 25.2 million elements",
        claimed=25.2e6,
        unit="count",
        at="GPT-2, 2,048 tokens, batch 8",
        source=SHARED,
        figures=(
            Figure("2 × tokens × batch × KV heads × head dim", lambda: cache_bytes(gpt2(), 2048, batch=8) / 12 / 2),
        ),
        why="The cache stores a key and a value of every token.",
        command="llmbench kvcache gpt2 --seq 2048 --batch 8 --explain",
    ),
    Claim(
        name="KV bytes of a layer",
        says="the cache of one layer needs 100 MB",
        claimed=100e6,
        unit="bytes",
        at="GPT-2, 2,048 tokens, batch 8, fp32",
        source=SHARED,
        figures=(Figure("4 bytes × elements", lambda: FP32 * cache_bytes(gpt2(), 2048, batch=8) / 12),),
        why="The cache in bf16 needs half of it.",
    ),
    Claim(
        name="KV bytes of GPT-2",
        says="the whole cache needs 1.2 GB",
        claimed=1.2e9,
        unit="bytes",
        at="GPT-2, 2,048 tokens, batch 8, fp32",
        source=SHARED,
        figures=(Figure("12 layers × 4 bytes × elements", lambda: FP32 * cache_bytes(gpt2(), 2048, batch=8)),),
        why="GPT-2 reads at most 1,024 tokens, so the published model never has this cache.",
    ),
    Claim(
        name="GQA cache",
        says="grouped-query attention with 4 of 12 heads makes the cache 67% smaller",
        claimed=-0.67,
        unit="change",
        at="12 heads",
        source=SHARED,
        figures=(Figure("4 / 12 − 1", lambda: saved("gpt2", 4)),),
        why="The cache has only the key-value heads.",
        command="llmbench kvcache gpt2 --set num_key_value_heads=4",
    ),
    Claim(
        name="MQA cache",
        says="multi-query attention makes the cache 92% smaller",
        claimed=-0.92,
        unit="change",
        at="12 heads; the textbook uses the figure for a 7B model with 32 heads, too",
        source=SHARED,
        figures=(
            Figure("1 / 12 − 1", lambda: saved("gpt2", 1), "12 heads"),
            Figure("1 / 32 − 1", lambda: saved("llama2-7b", 1), "32 heads"),
        ),
        why="The saving is 1 − 1/heads, so that a model with more heads saves more.",
        command="llmbench kvcache llama2-7b --set num_key_value_heads=1",
    ),
    *(
        Claim(
            name=f"{kind} parameters",
            says=f"a 7B model with {name} attention has {claimed:.0%} of the parameters",
            claimed=claimed,
            unit="share",
            at=f"LLaMA-2-7B, {kv_heads} of 32 heads",
            source=SHARED,
            figures=(
                Figure(
                    f"parameters with {plural(kv_heads, 'KV head')} / with 32", partial(share_of_parameters, kv_heads)
                ),
            ),
            why="Keys and values own a small part of the weights. Queries, output, feed-forward and embedding stay.",
            command=f"llmbench compare llama2-7b --vs --set num_key_value_heads={kv_heads}",
        )
        for kind, name, kv_heads, claimed in (("GQA", "grouped-query", 4, 0.85), ("MQA", "multi-query", 1, 0.75))
    ),
    Claim(
        name="GQA memory",
        says="a 7B model with grouped-query attention needs 17% less memory",
        claimed=-0.17,
        unit="change",
        at="the textbook states no setting; serving LLaMA-2-7B with 4 of 32 heads and 2,048 tokens is assumed",
        source=SHARED,
        figures=(
            Figure("weights, cache and one prefill step", lambda: served(4, 1), "batch 1"),
            Figure("weights, cache and one prefill step", lambda: served(4, 16), "batch 16"),
        ),
        why="With one sequence, most of the memory is weights. With more sequences, the cache decides.",
        command="llmbench memory llama2-7b --phase inference --set num_key_value_heads=4",
    ),
    *(
        Claim(
            name=f"{kind} projections",
            says=f"{kind} makes the projections of attention {-claimed:.0%} smaller",
            claimed=claimed,
            unit="change",
            at=f"width 768, 12 heads, {plural(kv_heads, 'KV head')}",
            source=SHARED,
            figures=(
                Figure("(q + k + v) / 3 q", partial(projections, kv_heads, output=False), "Q, K, V"),
                Figure(
                    "(q + k + v + o) / 4 q",
                    partial(projections, kv_heads, output=True),
                    "Q, K, V and the output",
                ),
            ),
            why="The textbook mixes two conventions: the output projection counts in one figure and not in the other.",
            command=f"llmbench params gpt2 --set num_key_value_heads={kv_heads}",
        )
        for kind, kv_heads, claimed in (("GQA", 4, -0.33), ("MQA", 1, -0.50))
    ),
    *(
        Claim(
            name=f"{kind} decode, batch {batch}",
            says=f"{kind} decodes {claimed - 1:.0%} faster than MHA, batch {batch}",
            claimed=claimed,
            at=ASSUMED.format(batch),
            source=SHARED,
            bound="or better",
            reading=Reading(f"decode {batch}", "time ratio", "MHA", kind),
            why="A decoding step reads all weights and the cache. The cache matters only if it is as large as the"
            " weights, so the gain depends on batch and length.",
        )
        for batch in (1, 16)
        for kind, claimed in (("MQA", 1.38), ("GQA", 1.29))
    ),
    *(
        Claim(
            name=f"{kind} training",
            says=f"{kind} trains {claimed - 1:.0%} faster than MHA",
            claimed=claimed,
            at="7B, 2,048 tokens; four layers of LLaMA-2-7B and batch 1 are assumed",
            source=SHARED,
            bound="or better",
            reading=Reading("train heads", "time ratio", "MHA", kind),
            why="Training computes with all query heads. Only the projections of keys and values become smaller.",
        )
        for kind, claimed in (("MQA", 1.08), ("GQA", 1.10))
    ),
)
"""All claims of this topic."""
