"""The language model of a multimodal checkpoint: its logits of text equal those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES

from benchmarks.model_sweep import BOUND, compare, tiny_config
from llmbench import model as models
from llmbench.errors import SpecError, UnsupportedError
from llmbench.spec.weights.multimodal import MULTIMODAL, text_name

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2_vl": ("qwen2_vl_text", {}),
    "qwen2_5_vl": ("qwen2_5_vl_text", {}),
    "qwen3_vl": ("qwen3_vl_text", {}),
    "qwen3_vl_moe": ("qwen3_vl_moe_text", {}),
    "gemma3": ("gemma3_text", {}),
    "gemma4": ("gemma4_text", {}),
    "llava": ("llama", {}),
    "mistral3": ("mistral", {}),
    "smolvlm": ("llama", {}),
    "glm4v": ("glm4v_text", {}),
    "glm4v_moe": ("glm4v_moe_text", {}),
    "glm_ocr": ("glm_ocr_text", {}),
    "paddleocr_vl": ("paddleocr_vl_text", {}),
    "minimax_m3_vl": ("minimax_m3_vl_text", {}),
    "qwen2_audio": ("qwen2", {}),
    "emu3": ("emu3_text_model", {"multimodal": False}),
    "phi4_multimodal": ("phi4_multimodal", {"multimodal": False}),
}
"""Multimodal model types, with the family of their language model. benchmarks/model_sweep.py --multimodal tries all.
AutoModelForCausalLM loads the last two."""


@pytest.mark.parametrize("model_type", CASES)
def test_logits_of_text_equal_transformers(model_type: str) -> None:
    row = compare(model_type, **{"multimodal": True, **CASES[model_type][1]})
    assert row["outcome"] == "equal", row
    assert row["relative_error"] <= BOUND


def test_every_type_is_one_of_transformers() -> None:
    assert {name for name, (_, options) in CASES.items() if not options} <= MULTIMODAL
    assert set(MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES) >= MULTIMODAL


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.norm.weight", "model.norm.weight"),
        ("model.text_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("vision_tower.layers.0.mlp.up_proj.weight", None),
        ("model.visual.blocks.0.norm1.weight", None),
    ],
)
def test_names_of_the_language_model(name: str, expected: str | None) -> None:
    assert text_name(name) == expected


def test_other_multimodal_types_are_refused(tmp_path: Path) -> None:
    """Aya Vision's class in transformers does not scale the logits as its language model does."""
    tiny_config("aya_vision").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="multimodal model type `aya_vision`"):
        models.load(tmp_path)


def test_a_missing_tensor_of_the_language_model_is_named(tmp_path: Path) -> None:
    import safetensors.torch

    config = tiny_config("llava")
    config.save_pretrained(tmp_path)
    safetensors.torch.save_file({"vision_tower.norm.weight": torch.zeros(10**6)}, tmp_path / "model.safetensors")
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava"
    with pytest.raises(SpecError, match="the files have 0 weights"):
        models.load(tmp_path)
