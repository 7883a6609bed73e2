"""Keys that no importer reads: sizes are refused, harmless keys change nothing, others make the spec approximate."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llmbench.errors import UnsupportedError
from llmbench.spec.catalog import load_bundled
from llmbench.spec.huggingface import from_config
from llmbench.spec.huggingface.facts import facts
from llmbench.spec.huggingface.unread_keys import names_a_size
from llmbench.spec.model import ModelSpec

from ..oracles.huggingface_export import to_config

LLAMA = {"model_type": "llama"}
KIMI = {"model_type": "kimi_linear", "linear_attn_config": {"num_heads": 32, "head_dim": 128}}


def read(config: dict[str, Any]) -> ModelSpec:
    return from_config(config, name="x")


@pytest.mark.parametrize(
    "keys",
    [
        {"routed_latent_hidden_size": 1024},
        {"num_memory_layers": 2},
        {"adapter_rank": 64},
        {"expert_widths": [128, 256]},
        {"memory_config": {"hidden_size": 64}},
    ],
    ids=lambda keys: next(iter(keys)),
)
@pytest.mark.parametrize("config", [LLAMA, KIMI], ids=["llama", "kimi"])
def test_a_key_that_names_a_size_is_refused(config: dict[str, Any], keys: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=f"{next(iter(keys))} = .* names a size"):
        read(config | keys)
    assert read(config | dict.fromkeys(keys)) == read(config)


@pytest.mark.parametrize(
    "keys",
    [
        {"moe_router_dtype": "float32"},
        {"state_format": "float8_e4m3fn"},
        {"sliding_window_size": -1},
        {"sliding_window_size": 128, "use_sliding_window": False},
        {"window_length": 128, "sliding_window": 128, "use_sliding_window": False},
        {"vision_tower_hidden_size": 1024},
        {"attention_dropout_rate": 0.1},
        {"prefill_chunk_size": 2048, "context_window_size": 4096, "tensor_parallel_shards": 2, "max_batch_size": 8},
        {"_note_size": 3},
    ],
    ids=lambda keys: next(iter(keys)),
)
def test_a_harmless_key_changes_nothing(keys: dict[str, Any]) -> None:
    plain, spec = read(LLAMA), read(LLAMA | keys)
    assert (spec.approximate, spec.undescribed) == ((), ())
    assert spec.layers == plain.layers


def test_an_activation_changes_the_computation_but_no_figure() -> None:
    spec = read(LLAMA | {"output_gate_type": "swish"})
    assert spec.approximate == ()
    assert any("output_gate_type" in reason for reason in spec.undescribed)
    qwen = to_config(load_bundled("qwen3-next-80b-a3b"))
    assert read(qwen | {"output_gate_type": "swish"}).undescribed == ()
    assert read(qwen | {"output_gate_type": "sigmoid"}).undescribed != ()


@pytest.mark.parametrize(
    "keys",
    [{"sliding_window_size": 4096}, {"memory_mode": "deep"}, {"use_memory": True}, {"memory_chunk_size": 512}],
    ids=lambda keys: next(iter(keys)),
)
def test_any_other_key_makes_the_spec_approximate(keys: dict[str, Any]) -> None:
    (reason,) = read(LLAMA | keys).approximate
    assert next(iter(keys)) in reason


def test_nested_keys_are_checked_too() -> None:
    config = json.loads(json.dumps(KIMI))
    config["linear_attn_config"]["use_memory"] = True
    assert any("linear_attn_config.use_memory" in reason for reason in read(config).approximate)


def test_the_rule_knows_the_sizes_that_transformers_declares() -> None:
    """Each size without which a parameter count of this project would be wrong is a size by the rule."""
    sizes = """
        hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim vocab_size
        kv_lora_rank q_lora_rank qk_rope_head_dim moe_intermediate_size num_experts n_routed_experts n_shared_experts
        d_model d_ff n_embd n_layer ffn_dim state_size mamba_d_state time_step_rank lru_width hc_lowrank
        conv_kernel_size linear_num_key_heads index_n_heads encoder_layers word_embed_proj_dim num_memory_blocks
        laurel_rank
    """
    assert [key for key in sizes.split() if not names_a_size(key, 64)] == []
    declared = {key for record in facts().values() for key in record["defaults"]}
    assert len(set(sizes.split()) & declared) > 20
