"""Each config with parts for other modalities than text gets a note that most figures are those of its text part."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers import Phi4MultimodalConfig

from llmbench.errors import LLMBenchError
from llmbench.spec.catalog import load_bundled
from llmbench.spec.huggingface import from_config
from llmbench.spec.huggingface.facts import facts

from ..oracles.huggingface_export import to_config


def has_note(config: dict[str, Any]) -> bool:
    spec = from_config(json.loads(json.dumps(config, default=str)), name="x")
    return any(note.startswith("multimodal config") for note in spec.notes)


def test_each_class_with_parts_for_other_modalities_gets_the_note() -> None:
    """`test_file_matches_installed_transformers` compares these records with the classes of transformers."""
    checked = set()
    for model_type in (name for name, record in facts().items() if "other_modalities" in record):
        try:
            assert has_note({"model_type": model_type}), model_type
        except LLMBenchError:
            continue
        checked.add(model_type)
    assert {"phi4_multimodal", "gemma3", "llava"} <= checked


def test_the_written_config_of_a_class_gets_the_note() -> None:
    assert has_note(Phi4MultimodalConfig().to_dict())
    (note,) = from_config({"model_type": "phi4_multimodal", "vision_config": {}, "audio_config": {}}, name="x").notes
    assert (
        note == "multimodal config `phi4_multimodal`: all figures but the bytes of weights are those of its text part"
    )


@pytest.mark.parametrize(
    "keys",
    [
        {"vision_config": {"depth": 2}},
        {"audio_processor": {"name": "x"}},
        {"img_processor": {"name": "x"}, "embd_layer": {"embedding_cls": "image"}},
        {"vision_lora": {"r": 256}, "speech_lora": {"r": 320}},
        {"mm_projector_type": "linear"},
        {"visual": {"width": 1}},
    ],
    ids=lambda keys: " ".join(keys),
)
@pytest.mark.parametrize("model_type", ["llama", "phi3", "phi4mm", "qwen"])
def test_keys_of_other_modalities_give_the_note(model_type: str, keys: dict[str, Any]) -> None:
    config = {"model_type": model_type, "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    config |= {"intermediate_size": 128, "vocab_size": 100}
    assert has_note(config | keys)
    assert not has_note(config)
    assert not has_note(config | dict.fromkeys(keys))


@pytest.mark.parametrize("name", ["llama2-7b", "deepseek-v3.2", "falcon-7b", "gpt2", "qwen3-8b", "jamba-v0.1"])
def test_language_models_have_no_such_note(name: str) -> None:
    assert not has_note(to_config(load_bundled(name)))
