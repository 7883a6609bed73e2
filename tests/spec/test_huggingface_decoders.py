"""Decoders of rare kinds, alone or as the text part of a multimodal model, compared with their classes."""

from __future__ import annotations

from typing import Any

import pytest

from llmbench.sizing.params import count_parameters
from llmbench.spec.huggingface import from_config

from ..oracles.transformers_meta import measure

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 5,
    "max_position_embeddings": 64,
    "vocab_size": 99,
}
EXPERTS = {"moe_intermediate_size": 24, "num_experts_per_tok": 2}
KINDS = ["dense", *["sparse"] * 4]
OCR = {**TEXT, **EXPERTS, "num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 2}
LATENT = {
    **OCR,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "v_head_dim": 10,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "mlp_layer_types": KINDS,
}
QWEN4 = {
    **{key: value for key, value in TEXT.items() if key != "intermediate_size"},
    **EXPERTS,
    "head_dim": 16,
    "num_hidden_layers": 4,
    "shared_expert_intermediate_size": 24,
    "num_experts": 8,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    "hc_count": 3,
    "hc_lowrank": 10,
    "ple_layer_ids": [1, 3],
    "ple_embed_dim": 48,
    "heads_per_ngram": 3,
    "ngram_vocab_size_base": 1000,
    "make_ngram_vocab_size_divisible_by": 16,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 32,
    "indexer_compress_ratio": 4,
    "eos_token_id": 1,
}
INKLING2_KINDS = ("hybrid_sliding", "hybrid")
INKLING2 = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "swa_num_attention_heads": 6,
    "swa_num_key_value_heads": 3,
    "swa_head_dim": 8,
    "sliding_window_size": 20,
    "d_rel": 4,
    "rel_extent": 30,
    "n_routed_experts": 8,
    **EXPERTS,
    "eos_token_id": 1,
    "vocab_size": 99,
}

CONFIGS: list[tuple[str, dict[str, Any]]] = [
    (
        "cpmant",
        {
            "hidden_size": 64,
            "num_attention_heads": 4,
            "dim_head": 8,
            "dim_ff": 80,
            "num_hidden_layers": 3,
            "position_bias_num_buckets": 16,
            "prompt_types": 3,
            "prompt_length": 2,
            "segment_types": 5,
            "vocab_size": 99,
        },
    ),
    ("hrm_text", {**TEXT, "head_dim": 16, "H_cycles": 3, "L_cycles": 2, "attention_bias": True}),
    ("hrm_text", {**TEXT, "num_hidden_layers": 30, "num_layers_per_stack": 5, "H_cycles": 2, "L_cycles": 2}),
    ("deepseek_ocr2", {"text_config": {"model_type": "deepseek_ocr2_text", **OCR, "mlp_layer_types": KINDS}}),
    ("unlimited_ocr", {"text_config": {"model_type": "unlimited_ocr_text", **OCR, "attention_bias": True}}),
    ("molmo2", {"text_config": {"model_type": "molmo2_text", **TEXT, "head_dim": 8, "additional_vocab_size": 7}}),
    (
        "molmo2",
        {
            "text_config": {
                "model_type": "molmo2_text",
                **TEXT,
                "head_dim": 16,
                "qk_norm_type": "olmo",
                "norm_after": True,
            }
        },
    ),
    ("voxtral_realtime", {"text_config": {"model_type": "voxtral_realtime_text", **TEXT, "head_dim": 8}}),
    ("muse_glimmer", {"text_config": {"model_type": "muse_glimmer_text", **TEXT, "head_dim": 8}}),
    (
        "glm5_next",
        {
            "text_config": {
                "model_type": "glm5_next_text",
                "pad_token_id": 0,
                **LATENT,
                "q_lora_rank": 24,
                "index_kpool": 4,
                "linear_num_heads": 2,
                "linear_head_dim": 8,
                "indexer_types": ["full", "full", "full", "full", "shared"],
                "layer_types": ["linear_attention", "linear_attention", "linear_attention", *["indexed_attention"] * 2],
            },
            "vision_config": {"model_type": "glm5_next_vision", "out_hidden_size": 64},
        },
    ),
    ("qwen4_exp_text", QWEN4),
    *(("inkling2_text", {**INKLING2, "layer_types": [first, "hybrid", "hybrid_sliding"]}) for first in INKLING2_KINDS),
    (
        "mistral_large4",
        {
            "text_config": {
                "model_type": "mistral_large4_text",
                **LATENT,
                "qk_rope_head_dim": 4,
                "no_rope_layers": [1, 1, 0, 1, 0],
                "indexer_types": ["full", "shared", "full", "full", "shared"],
            }
        },
    ),
    (
        "muse_spark",
        {
            "text_config": {
                "model_type": "muse_spark_text",
                **TEXT,
                **EXPERTS,
                "head_dim": 8,
                "num_local_experts": 6,
                "moe_hidden_size": 32,
                "mlp_layer_types": KINDS,
            },
            "audio_config": {"model_type": "muse_spark_audio", "out_hidden_size": 64},
        },
    ),
]


@pytest.mark.parametrize(("model_type", "values"), CONFIGS)
def test_transformers_counts_the_same(model_type: str, values: dict[str, Any]) -> None:
    config = {"model_type": model_type, **values}
    counted, truth = count_parameters(from_config(config, name="test")), measure(config)
    assert counted.total == truth.total
    assert counted.active == truth.active
    assert counted.active_matmul == truth.active_matmul
    assert counted.buffers == sum(truth.persistent_buffers.values())


KIMI_K3 = {
    "model_type": "kimi_linear",
    "activation_situ_beta": 4.0,
    "activation_situ_linear_beta": 25.0,
    "attn_res_block_size": 12,
    "first_k_dense_replace": 1,
    "hidden_act": "situ",
    "hidden_size": 7168,
    "intermediate_size": 33792,
    "kv_lora_rank": 512,
    "latent_moe_use_norm": True,
    "linear_attn_config": {
        "full_attn_layers": [*range(4, 93, 4), 93],
        "gate_lower_bound": -5.0,
        "head_dim": 128,
        "kda_layers": [layer for layer in range(1, 93) if layer % 4],
        "num_heads": 96,
        "short_conv_kernel_size": 4,
        "use_full_rank_gate": True,
    },
    "mla_use_nope": True,
    "mla_use_output_gate": True,
    "moe_intermediate_size": 3072,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "num_attention_heads": 96,
    "num_expert_group": 1,
    "num_experts": 896,
    "num_experts_per_token": 16,
    "num_hidden_layers": 93,
    "num_key_value_heads": 96,
    "num_shared_experts": 2,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-5,
    "routed_expert_hidden_size": 3584,
    "routed_scaling_factor": 1.0,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "v_head_dim": 128,
    "vocab_size": 163840,
}


def test_kimi_k3_has_the_size_of_its_files() -> None:
    """The experts are in MXFP4 (4 bits, and 8 bits per 32 elements), the rest in bf16.

    The index of moonshotai/Kimi-K3 states 1,560,860,324,864 bytes, with the vision tower of under 0.5 billion
    parameters.
    """
    spec = from_config({"model_type": "kimi_k3", "text_config": KIMI_K3}, name="test")
    assert spec.approximate == ()
    counted = count_parameters(spec)
    experts = counted.components["experts"]
    text = experts * 17 // 32 + 2 * (counted.total - experts)
    assert 0 < 1_560_860_324_864 - text < 2 * 500_000_000
    assert counted.total == 2_779_484_393_568


def test_each_run_of_a_layer_of_hrm_text_has_a_cache() -> None:
    """Two stacks of 5 layers, of which one runs 2 times and the other once, all of it 3 times: 45 caches."""
    from llmbench.sizing.lower import lower
    from llmbench.sizing.workload import Workload

    spec = from_config({"model_type": "hrm_text", **TEXT, "H_cycles": 3, "L_cycles": 2}, name="test")
    assert spec.num_hidden_layers == 45
    assert sum(op.count for op in lower(spec, Workload.prefill(8)) if op.cache) == 45
