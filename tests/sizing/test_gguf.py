"""GGUF recipes: by hand, fallbacks, and properties. benchmarks/published/checkpoints.csv has llama.cpp's own table."""

from __future__ import annotations

import pytest

from llmbench.errors import UnsupportedError
from llmbench.sizing.params import count_parameters
from llmbench.sizing.weights import stored_weights
from llmbench.spec.catalog import load_bundled
from llmbench.spec.weights.formats import format_names, load_format
from llmbench.spec.weights.gguf import BLOCKS, fitted

RECIPES = [name for name in format_names() if load_format(name).gguf is not None]


def test_llama_2_7b_by_hand() -> None:
    """Q4_K_M of 32 layers: 16 layers have the values and the second matrix in Q6_K, and the head is Q6_K."""
    d, inner, vocab, layers = 4096, 11008, 32000, 32
    many = sum(i < 4 or i >= 28 or (i - 4) % 3 == 2 for i in range(layers))
    q4, q6 = 144 / 256, 210 / 256
    square = layers * (3 * d * d + 2 * d * inner) * q4
    mixed = (d * d + d * inner) * (many * q6 + (layers - many) * q4)
    norms = 4 * d * (2 * layers + 1)
    expected = square + mixed + vocab * d * (q4 + q6) + norms
    assert many == 16
    assert stored_weights(load_bundled("llama2-7b"), "q4_k_m").total_bytes == expected


def test_only_the_70b_with_grouped_heads_has_all_values_in_q5() -> None:
    """Q4_K_S: the 70B has 80 values of 1,024 outputs in Q5_K. LLaMA-1 65B has its first 4 of 8,192 outputs in Q5_K."""
    d, layers, q4, q5 = 8192, 80, 144 / 256, 176 / 256
    for name, width, many in (("llama2-70b", 1024, 80), ("llama-65b", 8192, 4)):
        values = d * width * (many * q5 + (layers - many) * q4)
        others = layers * (2 * d * d + d * width) * q4
        assert stored_weights(load_bundled(name), "q4_k_s").components["attention"] == values + others


def test_rows_that_no_block_divides_fall_back() -> None:
    assert [fitted("Q4_K", row) for row in (256, 896, 100)] == ["Q4_K", "Q5_0", "F16"]
    assert [fitted("IQ2_XS", row) for row in (512, 96, 33)] == ["IQ2_XS", "IQ4_NL", "F16"]
    assert fitted("Q6_K", 896) == "Q8_0"
    # Qwen2.5-0.5B has rows of 896 = 7 × 128, so only its second matrices (4,864 = 19 × 256) keep their type
    small = stored_weights(load_bundled("qwen2.5-0.5b"), "q4_k_s").total_bytes
    assert small > stored_weights(load_bundled("qwen2.5-0.5b"), "q4_0").total_bytes


def test_recipes_are_ordered_and_bounded() -> None:
    """No recipe is smaller than its base type for every matrix, or larger than 16 bits with F32 vectors."""
    for name in ("llama3.1-8b", "mixtral-8x7b", "gemma2-9b", "jamba-v0.1", "deepseek-v2-lite", "phi-3-mini"):
        spec = load_bundled(name)
        elements = count_parameters(spec).total
        sizes = {}
        for recipe in RECIPES:
            gguf = load_format(recipe).gguf
            assert gguf is not None
            used = {gguf.base, *(rule.type for rule in gguf.rules)}
            smallest = min(BLOCKS[each][1] / BLOCKS[each][0] for each in used)
            sizes[recipe] = stored_weights(spec, recipe).total_bytes
            assert smallest * elements <= sizes[recipe] <= 4.1 * elements, (name, recipe)
        ranked = [f"gguf-{each}" for each in ("q2-k", "q3-k-m", "q4-k-m", "q5-k-m", "q6-k", "q8-0", "f16", "f32")]
        assert [sizes[each] for each in ranked] == sorted(sizes[each] for each in ranked)
        assert stored_weights(spec, "q4_k_m,q8_tables=1").total_bytes > sizes["gguf-q4-k-m"]


def test_falcon_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="Falcon"):
        stored_weights(load_bundled("falcon-7b"), "q4_k_m")
