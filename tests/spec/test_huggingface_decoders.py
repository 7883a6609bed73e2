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


def test_each_run_of_a_layer_of_hrm_text_has_a_cache() -> None:
    """Two stacks of 5 layers, of which one runs 2 times and the other once, all of it 3 times: 45 caches."""
    from llmbench.sizing.lower import lower
    from llmbench.sizing.workload import Workload

    spec = from_config({"model_type": "hrm_text", **TEXT, "H_cycles": 3, "L_cycles": 2}, name="test")
    assert spec.num_hidden_layers == 45
    assert sum(op.count for op in lower(spec, Workload.prefill(8)) if op.cache) == 45
