"""The text part of a multimodal config: where it is, which sizes count, and whether its head is tied."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmbench.errors import SpecError, UnsupportedError
from llmbench.sizing.params import count_parameters
from llmbench.spec.huggingface import from_config
from llmbench.spec.huggingface.facts import facts
from llmbench.spec.position import Rope

from ..oracles.transformers_meta import measure

LLAVA_13B: dict[str, Any] = {
    "architectures": ["LlavaLlamaForCausalLM"],
    "freeze_mm_mlp_adapter": False,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "image_aspect_ratio": "pad",
    "image_grid_pinpoints": None,
    "intermediate_size": 13824,
    "max_position_embeddings": 4096,
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_use_im_patch_token": False,
    "mm_use_im_start_end": False,
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "model_type": "llava",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "tune_mm_mlp_adapter": False,
    "tune_mm_vision_resampler": False,
    "unfreeze_mm_vision_tower": False,
    "use_mm_proj": True,
    "vocab_size": 32000,
}
"""The keys of the published config of LLaVA-1.5-13B, whose text part is Vicuna-13B."""

SMALL = {
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 4,
    "vocab_size": 100,
}


def total(config: dict[str, Any]) -> int:
    spec = from_config(config, name="x")
    assert spec.approximate == ()
    assert spec.notes[0].startswith("multimodal config")
    return count_parameters(spec).total


@pytest.mark.parametrize("model_type", ["llava", "llava_llama"])
def test_the_keys_of_the_text_part_beside_the_outer_keys(model_type: str) -> None:
    assert total(LLAVA_13B | {"model_type": model_type}) == 13_015_864_320


@pytest.mark.parametrize(
    ("model_type", "classes", "text_type"),
    [
        ("llava_mistral", None, "mistral"),
        ("llava_qwen", None, "qwen2"),
        ("llava_gemma", None, "gemma"),
        ("llava", ["LlavaMistralForCausalLM"], "mistral"),
        ("llava", ["LlavaQwenForCausalLM"], "qwen2"),
        ("llava", None, "llama"),
    ],
)
def test_the_type_of_a_text_part_at_the_top_level(model_type: str, classes: list[str] | None, text_type: str) -> None:
    keys = {**SMALL, "intermediate_size": 128, "num_key_value_heads": 2, "head_dim": 16}
    outer = {"model_type": model_type, "architectures": classes, "mm_vision_tower": "x", "mm_hidden_size": 32}
    assert total({**keys, **outer}) == measure({**keys, "model_type": text_type}).total


@pytest.mark.parametrize("model_type", sorted(name for name, record in facts().items() if record.get("flat")))
def test_the_classes_that_read_a_text_part_at_the_top_level(model_type: str) -> None:
    if model_type == "glm5_next":
        pytest.skip("its text part has no importer")
    config = {"model_type": model_type, "num_hidden_layers": 4, "vocab_size": 1000}
    text = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(config)).text_config
    spec = from_config(config, name="x")
    assert (spec.hidden_size, spec.num_hidden_layers, spec.vocab_size) == (
        text.hidden_size,
        text.num_hidden_layers,
        text.vocab_size,
    )
    assert (spec.num_hidden_layers, spec.vocab_size) == (4, 1000)


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config", "llm_cfg"])
def test_the_text_part_is_an_object(key: str) -> None:
    text = {**SMALL, "model_type": "llama"}
    assert (
        total({"model_type": "other", "vision_config": {}, key: text})
        == count_parameters(from_config(text, name="x")).total
    )


@pytest.mark.parametrize(
    "outer",
    [
        {"hidden_size": 5120},
        {"num_hidden_layers": 40},
        {"language_model": {"hidden_size": 5120}},
        {"text_config": {"model_type": "llama"}, "hidden_size": 5120},
    ],
    ids=lambda outer: next(iter(outer)),
)
@pytest.mark.parametrize("model_type", ["llava", "llava_next", "internvl"])
def test_a_default_is_not_used_while_the_outer_config_states_a_size(model_type: str, outer: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=r"states .*5120|states num_hidden_layers = 40"):
        from_config({"model_type": model_type, **outer}, name="x")


def test_sizes_of_other_parts_do_not_refuse_the_text_part() -> None:
    outer = {"model_type": "llava_next", "mm_hidden_size": 1024, "vision_config": {"hidden_size": 1024}}
    assert total(outer) == 6_738_415_616
    assert total({**outer, "hidden_size": 64, "text_config": {**SMALL, "model_type": "llama"}})


def test_some_classes_tie_the_head_if_only_the_text_part_says_so() -> None:
    """transformers decides: the config class of the whole model says whether it ties the head."""
    classes = [model_type for model_type, record in facts().items() if record.get("tied_by_text")]
    assert len(classes) >= 14
    for model_type in classes:
        text_type = facts()[model_type]["text_config"]["model_type"]
        for outer, inner in itertools.product((None, True, False), (True, False)):
            text = {"model_type": text_type, "tie_word_embeddings": inner}
            config: dict[str, Any] = {"model_type": model_type, "text_config": text}
            if outer is not None:
                config["tie_word_embeddings"] = outer
            whole = CONFIG_MAPPING[model_type].from_dict(copy.deepcopy(config))
            if outer is not None or inner:
                spec = from_config(config, name="test")
                assert spec.tie_word_embeddings == whole.tie_word_embeddings, (model_type, outer, inner)


def test_a_composite_gives_values_to_keys_that_its_text_part_lacks() -> None:
    """Voxtral's text part is a Llama with other defaults. PaliGemma's attention sees all tokens of the prompt."""
    config: dict[str, Any] = {"model_type": "voxtral", "text_config": {"num_hidden_layers": 2}}
    whole = CONFIG_MAPPING["voxtral"].from_dict(copy.deepcopy(config)).text_config
    spec = from_config(config, name="x")
    assert (spec.hidden_size, spec.vocab_size, spec.num_hidden_layers) == (whole.hidden_size, whole.vocab_size, 2)
    config["text_config"]["rope_theta"] = 1234.0
    assert from_config(config, name="x").positions == Rope(theta=1234.0)
    config = {"model_type": "paligemma", "text_config": {**SMALL, "model_type": "gemma"}}
    assert any("causal attention" in reason for reason in from_config(config, name="x").approximate)


@pytest.mark.parametrize("key", ["text_config", "llm_config", "thinker_config"])
@pytest.mark.parametrize("wrong", [5, "x", [], True, [1]])
def test_a_text_part_that_is_no_object_is_refused(key: str, wrong: object) -> None:
    """The class of the model would otherwise give its default sizes."""
    with pytest.raises(SpecError, match=f"config {key}: must be an object"):
        from_config({"model_type": "gemma3", key: wrong}, name="x")


def test_a_part_that_the_class_does_not_know_is_said() -> None:
    config = {"model_type": "gemma3", "text_config": {}, "vision_config": {}}
    usual = from_config(config, name="x").towers
    more = from_config({**config, "audio_config": {"hidden_size": 7}}, name="x").towers
    (audio,) = (tower for tower in more if tower not in usual)
    assert (audio.name, audio.parameters) == ("audio_config", None)
