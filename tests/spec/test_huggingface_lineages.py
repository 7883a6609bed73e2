"""Configs of families other than plain decoders: shared weights, two stacks, recurrent states, text parts."""

from __future__ import annotations

from typing import Any

import pytest

from llmbench.errors import SpecError, UnsupportedError
from llmbench.sizing.lower import lower
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.huggingface import from_config
from llmbench.spec.position import NoPositions, Rope

ALBERT_BASE = {
    "model_type": "albert",
    "embedding_size": 128,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "type_vocab_size": 2,
    "vocab_size": 30000,
}
KIMI_LINEAR = {
    "model_type": "kimi_linear",
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "kda_layers": [layer for layer in range(1, 27) if layer % 4],
        "head_dim": 128,
        "num_heads": 32,
        "short_conv_kernel_size": 4,
    },
}
QWEN2_VL = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vision_config": {"depth": 32},
    "vocab_size": 152064,
}


def total(config: dict[str, Any]) -> int:
    """Parameters of a config, which must not be approximate."""
    spec = from_config(config, name="test")
    assert spec.approximate == ()
    return count_parameters(spec).total


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (ALBERT_BASE, 11_221_680),
        ({"model_type": "bart", "max_position_embeddings": 1024, "vocab_size": 50265}, 406_291_456),
        ({"model_type": "m2m_100", "vocab_size": 256206}, 615_073_792),
        ({"model_type": "modernbert"}, 149_655_232),
        ({"model_type": "rwkv", "hidden_size": 768, "num_hidden_layers": 12}, 169_342_464),
        (KIMI_LINEAR, 49_122_675_072),
        (QWEN2_VL, 7_615_616_512),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else None,
)
def test_published_totals(config: dict[str, Any], parameters: int) -> None:
    assert total(config) == parameters


def test_shared_weights_are_counted_once_and_computed_with_in_every_layer() -> None:
    one = {**ALBERT_BASE, "num_hidden_layers": 1}
    assert total(ALBERT_BASE) == total(one)

    def flops(config: dict[str, Any]) -> int:
        ops = lower(from_config(config, name="test"), Workload.prefill(16))
        return sum(op.count * op.forward_flops for op in ops if op.layer)

    assert flops(ALBERT_BASE) == 12 * flops(one)


def test_two_groups_of_shared_weights_are_two_sets() -> None:
    def layers(groups: int) -> int:
        counted = count_parameters(from_config({**ALBERT_BASE, "num_hidden_groups": groups}, name="test"))
        return counted.components["attention"]

    assert layers(2) == 2 * layers(1)


def test_zamba_caches_each_use_of_its_shared_block() -> None:
    spec = from_config({"model_type": "zamba2", "num_mem_blocks": 2}, name="test")
    caches = [op.count for op in lower(spec, Workload.prefill(8)) if op.cache and op.cache.per_token]
    assert sum(caches) == 9


@pytest.mark.parametrize("outer", [None, True, False])
@pytest.mark.parametrize("inner", [None, True, False])
def test_tying_of_the_outer_config_has_precedence(outer: bool | None, inner: bool | None) -> None:
    config: dict[str, Any] = {"model_type": "llava_next", "text_config": {"model_type": "llama"}}
    if outer is not None:
        config["tie_word_embeddings"] = outer
    if inner is not None:
        config["text_config"]["tie_word_embeddings"] = inner
    spec = from_config(config, name="test")
    assert spec.tie_word_embeddings is bool(inner if outer is None else outer)
    assert any("text part" in note for note in spec.notes)


def test_a_missing_text_part_is_the_default_of_its_class() -> None:
    spec = from_config({"model_type": "paligemma"}, name="test")
    assert (spec.hidden_size, spec.num_hidden_layers, spec.family) == (2048, 18, "gemma")


def test_kimi_names_each_layer_once() -> None:
    wrong = {"full_attn_layers": [4], "kda_layers": [1, 2, 3]}
    with pytest.raises(SpecError, match="must list each of the 8 layers exactly once"):
        from_config({"model_type": "kimi_linear", "num_hidden_layers": 8, "linear_attn_config": wrong}, name="test")


def test_a_composite_that_cannot_be_taken_apart_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="encoder-decoder"):
        from_config({"model_type": "florence2", "text_config": {"model_type": "bart"}}, name="test")


def test_a_hybrid_without_attention_layers_has_no_rotation() -> None:
    """Bamba's config always states a rotation, but its class has no attention by default."""
    spec = from_config({"model_type": "bamba"}, name="test")
    assert isinstance(spec.positions, NoPositions)
    with_attention = from_config({"model_type": "bamba", "attn_layer_indices": [2]}, name="test")
    assert isinstance(with_attention.positions, Rope)
