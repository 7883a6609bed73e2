"""Claims about published models and GPUs: what is built how."""

from __future__ import annotations

from collections.abc import Callable

from llmbench.spec.catalog import load_bundled, load_device
from llmbench.spec.mixer import AttentionKind
from llmbench.spec.model import ModelSpec
from llmbench.textbook.claim import Claim, Figure

__all__ = ["CLAIMS"]

BYTES_PER_CLOCK = 128
"""Bytes that the shared memory of one multiprocessor delivers per clock: 32 banks of 4 bytes (CUDA C++ Programming
Guide, shared memory)."""


def attention(spec: ModelSpec) -> AttentionKind:
    """Return the attention of the model's first layer."""
    mixer = spec.layers[spec.order[0]].mixer
    assert isinstance(mixer, AttentionKind)
    return mixer


def kv_heads(model: str) -> int:
    """Return the key-value heads of a bundled model."""
    return attention(load_bundled(model)).num_key_value_heads


def groups_heads(model: str) -> float:
    """Return 1 if the cache of a bundled model stores the keys and values of fewer heads than the query heads, else 0.

    A cache of latents stores no keys and values.
    """
    mixer = attention(load_bundled(model))
    if mixer.absorbs:
        return 0.0
    return float(mixer.num_key_value_heads < mixer.num_attention_heads)


def placed(model: str, placement: str) -> float:
    """Return 1 if all layers of a bundled model place their norms in this way, else 0."""
    return float(all(layer.placement == placement for layer in load_bundled(model).layers.values()))


def on_chip() -> float:
    """Return the rate of the A100's shared memory, divided by the rate of its HBM."""
    device = load_device("a100-40gb-sxm")
    assert device.num_sms is not None
    assert device.boost_clock_hz is not None
    assert device.memory_bandwidth_bytes_per_s is not None
    shared = device.num_sms.value * BYTES_PER_CLOCK * device.boost_clock_hz.value
    return shared / device.memory_bandwidth_bytes_per_s.value


def yes(name: str, says: str, why: str, source: str, model: str, value: Callable[[], float], formula: str) -> Claim:
    """Return a claim that is true or false for a published model."""
    return Claim(
        name=name,
        says=says,
        claimed=1.0,
        unit="yes",
        bound="exact",
        at="the published model",
        source=source,
        figures=(Figure(formula, value),),
        why=why,
        command=f"llmbench specs show {model}",
    )


CLAIMS = (
    yes(
        "LLaMA-2-7B heads",
        "LLaMA-2-7B has grouped-query attention",
        "Only the models of 34B and 70B group their heads.",
        "LLaMA 2, arXiv 2307.09288, table 1",
        "llama2-7b",
        lambda: groups_heads("llama2-7b"),
        "KV heads < query heads",
    ),
    Claim(
        name="Mistral-7B heads",
        says="Mistral-7B has 4 key-value heads",
        claimed=4,
        unit="count",
        bound="exact",
        at="32 query heads",
        source="Mistral 7B, arXiv 2310.06825, table 1",
        figures=(Figure("num_key_value_heads", lambda: kv_heads("mistral-7b-v0.1")),),
        why="The textbook may have read 4 query heads per key-value head.",
        command="llmbench specs show mistral-7b-v0.1",
    ),
    yes(
        "GPT-2 norms' place",
        "GPT-2 is a post-norm model",
        "The original Transformer and GPT-1 are post-norm. GPT-2 moved the norms before the sublayers.",
        "GPT-2 (Radford et al., 2019), section 2.3",
        "gpt2",
        lambda: placed("gpt2", "post"),
        "placement = post",
    ),
    yes(
        "BLOOM block",
        "BLOOM computes attention and feed-forward in parallel",
        "BLOOM's layers are sequential. Falcon, PaLM, GPT-J and GPT-NeoX have parallel blocks.",
        "BLOOM, arXiv 2211.05100",
        "bloom-7b1",
        lambda: placed("bloom-7b1", "parallel"),
        "placement = parallel",
    ),
    yes(
        "DeepSeek-V3 attention",
        "DeepSeek-V3 has grouped-query attention",
        "It has multi-head latent attention (MLA): the cache stores one latent vector per token.",
        "DeepSeek-V3, arXiv 2412.19437",
        "deepseek-v3",
        lambda: groups_heads("deepseek-v3"),
        "KV heads < query heads, without latents",
    ),
    Claim(
        name="A100 SRAM",
        says="the on-chip SRAM of an A100 is slower than its HBM",
        claimed=1.0,
        bound="at most",
        at="the rate of all shared memories together / the rate of HBM",
        source="NVIDIA, A100 whitepaper, 2020",
        figures=(Figure("SMs × 128 bytes × clock / rate of HBM", on_chip),),
        why="This difference is the reason why flash attention is fast: it keeps the scores on the chip.",
        command="llmbench specs show a100-40gb-sxm",
    ),
)
"""All claims of this topic."""
