"""The parameters of vision towers, audio towers and projectors, against transformers on the meta device."""

from __future__ import annotations

import contextlib
import copy
import random
from typing import Any

import pytest
import torch
import transformers
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from llmbench.errors import LLMBenchError
from llmbench.sizing.weights import stored_weights
from llmbench.spec.catalog import load_bundled
from llmbench.spec.huggingface import from_config
from llmbench.spec.huggingface.towers import COMPOSITES, defaults, towers_of
from llmbench.spec.model import ModelSpec

SMALL_VIT = {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 200, "num_hidden_layers": 3}
SMALL_QWEN = {"hidden_size": 96, "num_heads": 4, "intermediate_size": 200, "depth": 3, "spatial_merge_size": 3}
SMALL_WHISPER = {"d_model": 96, "encoder_attention_heads": 4, "encoder_ffn_dim": 200, "encoder_layers": 3}

VARIATIONS: dict[str, dict[str, Any]] = {
    "aria": {"vision_config": SMALL_VIT, "projector_patch_to_query_dict": {"9": 7, "16": 11}},
    "aya_vision": {
        "vision_config": {"model_type": "siglip_vision_model", **SMALL_VIT, "vision_use_head": True},
        "downsample_factor": 3,
    },
    "cohere2_vision": {"vision_config": SMALL_VIT, "downsample_factor": 3, "alignment_intermediate_size": 250},
    "deepseek_vl": {"vision_config": {**SMALL_VIT, "vision_use_head": False, "image_size": 60, "patch_size": 12}},
    "ernie4_5_vl_moe": {"vision_config": {**SMALL_QWEN, "temporal_merge_size": 3, "in_channels": 4}},
    "gemma3": {"vision_config": {**SMALL_VIT, "vision_use_head": False, "image_size": 70, "patch_size": 14}},
    "gemma4": {
        "vision_config": {
            **SMALL_VIT,
            "head_dim": 32,
            "num_key_value_heads": 2,
            "standardize": True,
            "use_clipped_linears": True,
        },
        "audio_config": {
            "hidden_size": 96,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "conv_kernel_size": 7,
            "output_proj_dims": 80,
            "subsampling_conv_channels": [16, 24],
        },
    },
    "gemma4_unified": {
        "vision_config": {"patch_size": 8, "mm_embed_dim": 96, "mm_posemb_size": 30, "output_proj_dims": 80},
    },
    "glm4v": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90, "attention_bias": True, "image_size": 56}},
    "glm46v": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90}},
    "glm4v_moe": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90}},
    "glm_ocr": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90, "attention_bias": False}},
    "idefics2": {
        "vision_config": {**SMALL_VIT, "image_size": 64},
        "perceiver_config": {
            "hidden_size": 80,
            "resampler_n_latents": 5,
            "resampler_depth": 2,
            "resampler_n_heads": 6,
            "resampler_head_dim": 10,
            "num_key_value_heads": 2,
        },
    },
    "idefics3": {"vision_config": {**SMALL_VIT, "patch_size": 16}, "scale_factor": 3},
    "internvl": {
        "vision_config": {
            **SMALL_VIT,
            "use_qk_norm": True,
            "use_mask_token": True,
            "attention_bias": True,
            "norm_type": "rms_norm",
            "use_mean_pooling": False,
            "image_size": [56, 28],
        },
        "downsample_ratio": 0.25,
    },
    "kimi_k25": {
        "vision_config": {**SMALL_VIT, "pos_emb_height": 5, "pos_emb_width": 7, "merge_kernel_size": [2, 3]},
        "projection_hidden_size": 64,
    },
    "lfm2_vl": {
        "vision_config": {**SMALL_VIT, "num_patches": 30, "vision_use_head": False},
        "downsample_factor": 3,
        "projector_hidden_size": 70,
        "projector_use_layernorm": False,
        "projector_bias": False,
    },
    "lighton_ocr": {"vision_config": {**SMALL_VIT, "head_dim": 24}, "spatial_merge_size": 3},
    "llama4": {
        "vision_config": {**SMALL_VIT, "projector_input_dim": 70, "projector_output_dim": 60, "vision_output_dim": 60}
    },
    "llava": {
        "vision_config": {"model_type": "clip_vision_model", **SMALL_VIT, "image_size": 60, "patch_size": 12},
        "multimodal_projector_bias": False,
        "vision_feature_layer": [-1, -2],
    },
    "llava_next": {"vision_config": {"model_type": "siglip_vision_model", **SMALL_VIT}},
    "llava_next_video": {
        "vision_config": {"model_type": "clip_vision_model", **SMALL_VIT},
        "spatial_pool_mode": "conv",
    },
    "llava_onevision": {"vision_config": {"model_type": "siglip_vision_model", **SMALL_VIT, "vision_use_head": False}},
    "mistral3": {
        "vision_config": {"model_type": "pixtral", **SMALL_VIT, "head_dim": 24, "patch_size": 8},
        "spatial_merge_size": 3,
        "multimodal_projector_bias": True,
    },
    "mllama": {
        "vision_config": {
            "hidden_size": 96,
            "attention_heads": 4,
            "intermediate_size": 200,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "intermediate_layers_indices": [1],
            "vision_output_dim": 192,
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "image_size": 56,
        }
    },
    "audioflamingo3": {
        "audio_config": {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 200, "num_mel_bins": 40},
        "projector_bias": False,
    },
    "blip-2": {
        "vision_config": {**SMALL_VIT, "qkv_bias": False, "image_size": 56},
        "qformer_config": {**SMALL_VIT, "encoder_hidden_size": 96, "cross_attention_frequency": 3},
        "num_query_tokens": 7,
    },
    "cohere_compass": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90, "deepstack_visual_indexes": [1]}},
    "cosmos3_omni": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90, "deepstack_visual_indexes": []}},
    "deepseek_vl_hybrid": {
        "vision_config": {**SMALL_VIT, "vision_use_head": False},
        "high_res_vision_config": {
            "hidden_size": 96,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "mlp_dim": 200,
            "image_size": 128,
            "window_size": 4,
            "global_attn_indexes": [1],
            "output_channels": 20,
        },
    },
    "exaone4_5": {"vision_config": {**SMALL_QWEN, "num_key_value_heads": 2, "out_hidden_size": 90}},
    "fuyu": {"patch_size": 10, "num_channels": 4},
    "glmasr": {
        "audio_config": {
            "hidden_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
        }
    },
    "got_ocr2": {
        "vision_config": {
            "hidden_size": 96,
            "num_attention_heads": 4,
            "num_hidden_layers": 3,
            "mlp_dim": 200,
            "image_size": 128,
            "global_attn_indexes": [0, 2],
            "qkv_bias": False,
            "use_abs_pos": False,
        }
    },
    "hunyuan_vl": {
        "vision_config": {**SMALL_VIT, "max_image_size": 128, "spatial_merge_size": 3, "text_hidden_size": 70}
    },
    "hyperclovax_vision_v2": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90}},
    "instructblip": {
        "vision_config": SMALL_VIT,
        "qformer_config": {**SMALL_VIT, "encoder_hidden_size": 96, "vocab_size": 50, "max_position_embeddings": 20},
    },
    "lfm3_vl": {
        "vision_config": {**SMALL_VIT, "num_key_value_heads": 2, "conv_kernel_size": 5, "temporal_patch_size": 1},
        "projector_hidden_size": 70,
        "projector_bias": False,
    },
    "minicpmv4_6": {"vision_config": {**SMALL_VIT, "insert_layer_id": 1}, "merger_times": 2},
    "minimax_m3_vl": {"vision_config": {**SMALL_VIT, "spatial_merge_size": 3}, "projector_hidden_size": 70},
    "modernvbert": {"vision_config": {**SMALL_VIT, "vision_use_head": False}, "pixel_shuffle_factor": 2},
    "moss_transcribe_diarize": {
        "audio_config": {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 200, "num_mel_bins": 40},
        "audio_merge_size": 3,
        "projector_bias": False,
    },
    "ovis2": {
        "vision_config": {**SMALL_VIT, "qkv_bias": True, "mlp_bias": True, "vocab_size": 300, "hidden_stride": 2},
    },
    "paddleocr_vl": {"vision_config": {**SMALL_VIT, "spatial_merge_size": 3}},
    "qwen3_asr": {"audio_config": {**SMALL_WHISPER, "output_dim": 70, "downsample_hidden_size": 30}},
    "step3p7": {"vision_config": {**SMALL_VIT, "mlp_ratio": 3.0, "image_size": 56}, "projector_bias": True},
    "video_llama_3": {"vision_config": SMALL_VIT},
    "glm5_next": {
        "vision_config": {
            **SMALL_QWEN,
            "out_hidden_size": 90,
            "projection_intermediate_size": 70,
            "attention_bias": False,
        }
    },
    "granite_docling": {
        "vision_config": {
            **SMALL_VIT,
            "image_size": 128,
            "out_hidden_size": 1024,
            "scale_factor": 2,
            "deepstack_visual_indexes": [1],
            "use_fine_route": False,
        }
    },
    "molmo2": {
        "vision_config": {**SMALL_VIT, "head_dim": 20, "num_key_value_heads": 2, "num_position_embeddings": 30},
        "adapter_config": {
            "vision_feature_layer": [2, 1, 0],
            "hidden_size": 96,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "head_dim": 24,
            "intermediate_size": 50,
        },
    },
    "muse_glimmer": {
        "vision_config": {**SMALL_VIT, "pos_emb_height": 5, "pos_emb_width": 7, "patch_temporal": 1},
        "out_hidden_size": 384,
        "projector_hidden_size": 50,
    },
    "granite_speech": {
        "encoder_config": {
            "hidden_dim": 96,
            "input_dim": 50,
            "num_heads": 4,
            "num_layers": 3,
            "feedforward_mult": 3,
            "output_dim": 30,
            "max_pos_emb": 20,
            "context_size": 10,
            "conv_kernel_size": 7,
            "conv_expansion_factor": 3,
        },
        "projector_config": {**SMALL_VIT, "model_type": "blip_2_qformer", "encoder_hidden_size": 96},
        "window_size": 12,
        "downsample_rate": 4,
    },
    "ultravbert": {"vision_config": SMALL_VIT, "pixel_shuffle_factor": 2},
    "voxtral_realtime": {
        "audio_config": {
            "hidden_size": 96,
            "head_dim": 20,
            "num_attention_heads": 4,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_mel_bins": 40,
        },
        "downsample_factor": 2,
    },
    "paligemma": {"vision_config": {**SMALL_VIT, "vision_use_head": False}, "projection_dim": 64},
    "phi4_multimodal": {
        "vision_config": SMALL_VIT,
        "audio_config": {
            "hidden_size": 96,
            "num_attention_heads": 4,
            "num_blocks": 2,
            "ext_pw_out_channel": 96,
            "depthwise_separable_out_channel": 96,
            "depthwise_multiplier": 2,
            "intermediate_size": 100,
            "kernel_size": 5,
            "input_size": 50,
            "time_reduction": 4,
            "bias_symmetric": True,
            "nemo_conv_channels": 20,
            "downsample_rate": 2,
        },
    },
    "qwen2_vl": {"vision_config": {"embed_dim": 96, "hidden_size": 64, "depth": 3, "mlp_ratio": 3, "num_heads": 4}},
    "qwen2_5_vl": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90}},
    "qwen3_vl": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90, "deepstack_visual_indexes": [1]}},
    "qwen3_vl_moe": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90, "deepstack_visual_indexes": [0, 1]}},
    "qwen3_5": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90, "num_position_embeddings": 49}},
    "qwen3_5_moe": {"vision_config": {**SMALL_QWEN, "out_hidden_size": 90, "patch_size": 8}},
    "qwen2_5_omni_thinker": {
        "vision_config": {**SMALL_QWEN, "out_hidden_size": 90},
        "audio_config": {**SMALL_WHISPER, "output_dim": 70, "num_mel_bins": 40},
    },
    "qwen3_omni_moe_thinker": {
        "vision_config": {**SMALL_QWEN, "out_hidden_size": 90},
        "audio_config": {**SMALL_WHISPER, "output_dim": 70, "downsample_hidden_size": 30, "num_mel_bins": 50},
    },
    "qwen2_audio": {"audio_config": {**SMALL_WHISPER, "max_source_positions": 30}},
    "smolvlm": {"vision_config": SMALL_VIT, "scale_factor": 3},
    "video_llava": {"vision_config": {"model_type": "clip_vision_model", **SMALL_VIT}},
    "vipllava": {
        "vision_config": {"model_type": "clip_vision_model", **SMALL_VIT},
        "vision_feature_layer": [-1, -2],
    },
    "voxtral": {"audio_config": {"hidden_size": 96, "num_attention_heads": 4, "intermediate_size": 200}},
}

TEXT_SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
"""Sizes of the text part where the sizes of its class contradict each other, or where it is large."""

NEEDS_TEXT_SIZES = ("glm4v_moe", "hunyuan_vl", "qwen3_omni_moe_thinker")
NO_DEFAULT = {
    "t5gemma2": "a test of its own has it",
    "t5gemma2_encoder": "the test of t5gemma2 has it",
    "aya_vision": "the default heads do not divide the default width",
    "fast_vlm": "needs the library timm",
    "gemma3n": "needs the library timm",
    "janus": "its autoencoder is not counted",
    "qwen2_5_omni": "its parts are not counted",
    "qwen3_omni_moe": "its parts are not counted",
}


REMOTE = {"internvl_chat", "kimi_vl", "phi3_v", "phi4mm"}
"""Model types of published files that transformers has no class for."""


def whole_config(model_type: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A config with few text layers."""
    config_class = CONFIG_MAPPING[model_type]
    text = config_class.sub_configs_defaults.get("text_config")
    values: dict[str, Any] = {"model_type": model_type, **copy.deepcopy(changes)}
    if text is None:
        return values | {"num_hidden_layers": 2}
    layers = TEXT_SIZES if model_type in NEEDS_TEXT_SIZES else {"num_hidden_layers": 2}
    named = {"model_type": text.model_type or text.config_class.model_type}
    if model_type == "cohere_compass":  # without this key, its class cannot be built
        rotation = {"rope_type": "default", "rope_theta": 10000.0}
        named["rope_parameters"] = {"full_attention": rotation, "sliding_attention": rotation}
    return values | {"text_config": named | (text.init_kwargs or {}) | layers}


def stored_elements(values: dict[str, Any]) -> dict[str, int]:
    """Name of each stored tensor -> number of elements, from the class of transformers."""
    model_type = values["model_type"]
    names = {
        **auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
        **auto.MODEL_MAPPING_NAMES,
        "qwen2_5_omni_thinker": "Qwen2_5OmniThinkerForConditionalGeneration",
        "qwen3_omni_moe_thinker": "Qwen3OmniMoeThinkerForConditionalGeneration",
    }
    config = CONFIG_MAPPING[model_type](**copy.deepcopy({k: v for k, v in values.items() if k != "model_type"}))
    with torch.device("meta"):
        model = getattr(transformers, names[model_type])._from_config(config)
    return {name.removeprefix("model."): tensor.numel() for name, tensor in model.state_dict().items()}


def check(values: dict[str, Any]) -> ModelSpec:
    """Every tensor outside the text part belongs to a tower, and each tower has the elements of its tensors."""
    elements = stored_elements(values)
    spec = from_config(copy.deepcopy(values), name="x")
    left = dict(elements)
    for tower in spec.towers:
        own = [name for name in elements if name == tower.name or name.startswith(f"{tower.name}.")]
        assert tower.parameters == sum(left.pop(name) for name in own), tower.name
        assert all("default sizes of the class" in doubt for doubt in tower.doubts)
    text = ("language_model", "text_model", "lm_head", "embed_tokens", "layers", "norm")
    assert {name.split(".")[0] for name in left} <= set(text)
    return spec


@pytest.mark.parametrize("model_type", sorted(COMPOSITES.keys() - NO_DEFAULT.keys() - REMOTE))
def test_default_sizes(model_type: str) -> None:
    optional = {"vision_config": {}, "audio_config": {}} if model_type.startswith("gemma4") else {}
    check(whole_config(model_type, optional))


@pytest.mark.parametrize("model_type", sorted(VARIATIONS))
def test_other_sizes(model_type: str) -> None:
    check(whole_config(model_type, VARIATIONS[model_type]))


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {
            "hidden_size": 96,
            "conf_num_attention_heads": 4,
            "conf_num_hidden_layers": 2,
            "conf_conv_kernel_size": 7,
            "input_feat_size": 50,
            "sscp_conv_channel_size": [20, 12],
            "sscp_conv_kernel_size": [[3, 3], [5, 3]],
            "sscp_conv_stride_size": [[2, 2], [1, 3]],
        },
    ],
    ids=["default", "small"],
)
def test_the_audio_tower_of_gemma3n(keys: dict[str, Any]) -> None:
    """The whole class needs the library timm, its audio tower does not."""
    with torch.device("meta"):
        encoder = transformers.AutoModel.from_config(transformers.Gemma3nAudioConfig(**keys))
    spec = from_config({"model_type": "gemma3n", "vision_config": {}, "audio_config": keys}, name="x")
    counted = {tower.name: tower.parameters for tower in spec.towers}
    assert counted["audio_tower"] == sum(tensor.numel() for tensor in encoder.state_dict().values())
    assert counted["vision_tower"] is None


def test_the_vision_tower_inside_the_encoder_of_t5gemma2() -> None:
    changes = {"model_type": "siglip_vision_model", **SMALL_VIT, "vision_use_head": False}
    text = {
        "num_hidden_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    values = {"encoder": {"text_config": text, "vision_config": changes}, "decoder": text}
    with torch.device("meta"):
        config = CONFIG_MAPPING["t5gemma2"](**copy.deepcopy(values))
        whole = transformers.T5Gemma2ForConditionalGeneration(config)
    spec = from_config({"model_type": "t5gemma2", **copy.deepcopy(values)}, name="x")
    for tower in spec.towers:
        own = [tensor.numel() for name, tensor in whole.state_dict().items() if f".{tower.name}." in f".{name}"]
        assert tower.parameters == sum(own), tower.name
    assert len(spec.towers) == 2


def test_the_vision_tower_of_janus() -> None:
    changes = {"hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 3, "mlp_ratio": 3.0, "depth": 3}
    changes |= {"use_qk_norm": True, "attention_bias": False, "image_size": 64, "projection_dim": 50}
    values = whole_config("janus", {"vision_config": changes})
    elements, spec = stored_elements(values), from_config(copy.deepcopy(values), name="x")
    counted = {tower.name: tower.parameters for tower in spec.towers}
    for part in ("vision_model", "aligner"):
        assert counted[part] == sum(size for name, size in elements.items() if name.startswith(f"{part}."))
    assert counted["vqmodel"] is None


WRONG = ("x", -1, 2**70, 1.5, None, [], {}, [1, "a"], [[1]], {"a": {}}, float("inf"), [0, 0])


@pytest.mark.parametrize("model_type", sorted(COMPOSITES))
def test_wrong_values_are_refused_or_leave_the_part_out(model_type: str) -> None:
    """The choice of keys and values is the same in each run. Any other error than LLMBenchError fails the test."""
    record = defaults()["composites"].get(model_type, {"parts": {"vision_config": {"model_type": ""}}})
    chosen = random.Random(model_type)
    for part, about in record["parts"].items():
        keys = list(defaults()["towers"].get(about["model_type"], {}).get("defaults", ()))
        for key in chosen.sample(keys, min(3, len(keys))):
            with contextlib.suppress(LLMBenchError):
                from_config({"model_type": model_type, part: {key: chosen.choice(WRONG)}}, name="x")
        with contextlib.suppress(LLMBenchError):
            from_config({"model_type": model_type, part: chosen.choice(WRONG)}, name="x")


def test_both_forms_of_kimi_agree() -> None:
    """The files on the hub have other names of keys than transformers writes."""
    written = {"hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 3, "pos_emb_height": 5}
    hub = {"vt_hidden_size": 96, "vt_intermediate_size": 200, "vt_num_hidden_layers": 3, "init_pos_emb_height": 5}
    text = {"model_type": "deepseek_v3", "num_hidden_layers": 2}
    first, second = (
        from_config({"model_type": "kimi_k25", "text_config": text, "vision_config": vision}, name="x").towers
        for vision in (written, hub)
    )
    assert first == second


def test_each_formula_is_checked() -> None:
    same_formulas = {"shieldgemma2", "qianfan_ocr", "glmga", "minicpmv4_7", "minicpm_ocr", "pp_chart2table"}
    same_formulas |= {"instructblipvideo", "musicflamingo", "mistral_large4", "granite_speech_plus"}
    assert COMPOSITES.keys() - VARIATIONS.keys() <= NO_DEFAULT.keys() | same_formulas | REMOTE


def test_the_written_config_gives_the_same_towers() -> None:
    """transformers writes all keys, a hub file only some."""
    for model_type in ("llava", "gemma3", "qwen2_5_vl", "voxtral", "internvl"):
        values = whole_config(model_type, VARIATIONS[model_type])
        config = CONFIG_MAPPING[model_type](**copy.deepcopy({k: v for k, v in values.items() if k != "model_type"}))
        spec = from_config(values, name="x")
        assert from_config(config.to_dict(), name="x").towers == spec.towers != (), model_type


def test_bundled_towers_have_the_counts_of_their_config() -> None:
    """Source of the sizes: the config.json of Qwen/Qwen3.5-9B and of Qwen/Qwen3.5-35B-A3B."""
    for name, width in (("qwen3.5-9b", 4096), ("qwen3.5-35b-a3b", 2048)):
        bundled = load_bundled(name)
        vision = {"out_hidden_size": width}
        assert towers_of({"model_type": "qwen3_5", "vision_config": vision}, bundled) == bundled.towers


def test_a_part_without_a_formula_makes_the_bytes_approximate() -> None:
    spec = from_config(whole_config("fast_vlm", {}), name="x")
    tower, projector = spec.towers
    assert (tower.name, tower.parameters) == ("vision_tower", None)
    assert projector.parameters
    for text in (None, "fp8"):
        doubts = stored_weights(spec, text).doubts
        assert any(doubt.startswith("vision_tower: its weights are not counted") for doubt in doubts)
    assert not stored_weights(spec, "q4_k_m").doubts


def test_parts_under_unusual_keys_are_no_silent_loss() -> None:
    config = {"model_type": "vibevoice_asr", "text_config": {"model_type": "qwen2"}, "semantic_config": {"width": 5}}
    (tower,) = from_config(config, name="x").towers
    assert (tower.name, tower.parameters) == ("semantic_config", None)
    omni = from_config({"model_type": "qwen2_5_omni"}, name="x")
    known = {tower.name: tower.parameters is not None for tower in omni.towers}
    assert known == {"talker": False, "token2wav": False, "visual": True, "audio_tower": True}


def test_wrong_sizes_of_a_tower_do_not_refuse_the_text_part() -> None:
    values = whole_config("llava", {"vision_config": {"model_type": "clip_vision_model", "hidden_size": "wide"}})
    spec = from_config(values, name="x")
    assert [tower.parameters for tower in spec.towers] == [None]
    assert "hidden_size" in spec.towers[0].doubts[0]


def test_an_unknown_key_of_a_tower_is_a_doubt() -> None:
    values = whole_config("llava", {"vision_config": {"model_type": "clip_vision_model", "extra_width": 5}})
    (doubt,) = from_config(values, name="x").towers[0].doubts
    assert "vision_config.extra_width = 5" in doubt
    assert not from_config(values, name="x").approximate


def test_a_format_that_does_not_mention_the_tower_is_a_doubt() -> None:
    values = whole_config("llava", VARIATIONS["llava"])
    quantised = values | {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}}
    assert "does not say" in stored_weights(from_config(quantised, name="x")).doubts[-1]
    quantised["quantization_config"]["modules_to_not_convert"] = ["vision_tower"]
    assert not stored_weights(from_config(quantised, name="x")).doubts
