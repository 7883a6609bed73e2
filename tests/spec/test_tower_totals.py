"""Text part and towers together have the number of parameters of the published files."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from llmbench.sizing.params import count_parameters
from llmbench.spec.catalog import load_bundled
from llmbench.spec.huggingface import from_config

SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "patch_size": 14}
SIGLIP |= {"num_hidden_layers": 27, "num_attention_heads": 16, "vision_use_head": False}
QWEN7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28}
QWEN7B |= {"num_key_value_heads": 4}
QWEN_VISION = {"depth": 32, "num_heads": 16, "in_chans": 3, "hidden_size": 1280, "intermediate_size": 3420}
INTERN = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
INTERN |= {"image_size": 448, "patch_size": 14, "norm_type": "layer_norm"}

PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "google/gemma-3-4b-it": (
        4_300_079_472,
        {
            "model_type": "gemma3",
            "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34},
            "vision_config": {**SIGLIP, "image_size": 896},
        },
    ),
    "google/paligemma-3b-pt-224": (
        2_923_466_480,
        {
            "model_type": "paligemma",
            "projection_dim": 2048,
            "text_config": {
                "model_type": "gemma",
                "hidden_size": 2048,
                "intermediate_size": 16384,
                "num_attention_heads": 8,
                "num_hidden_layers": 18,
                "num_key_value_heads": 1,
                "num_image_tokens": 256,
                "vocab_size": 257216,
            },
            "vision_config": {**SIGLIP, "image_size": 224},
        },
    ),
    "Qwen/Qwen2.5-VL-7B-Instruct": (
        8_292_166_656,
        {
            "model_type": "qwen2_5_vl",
            **QWEN7B,
            "vocab_size": 152064,
            "vision_config": {**QWEN_VISION, "out_hidden_size": 3584},
        },
    ),
    "Qwen/Qwen2-Audio-7B-Instruct": (
        8_397_094_912,
        {
            "model_type": "qwen2_audio",
            "text_config": {
                "model_type": "qwen2",
                "intermediate_size": 11008,
                "num_key_value_heads": 32,
                "vocab_size": 156032,
            },
            "audio_config": {"model_type": "qwen2_audio_encoder"},
        },
    ),
    "llava-hf/llava-1.5-7b-hf": (
        7_063_427_072,
        {
            "model_type": "llava",
            "text_config": {"model_type": "llama", "vocab_size": 32064},
            "vision_config": {
                "model_type": "clip_vision_model",
                "hidden_size": 1024,
                "image_size": 336,
                "intermediate_size": 4096,
                "num_attention_heads": 16,
                "num_hidden_layers": 24,
                "patch_size": 14,
            },
        },
    ),
    "OpenGVLab/InternVL3-8B-hf": (
        7_944_373_760,
        {
            "model_type": "internvl",
            "text_config": {"model_type": "qwen2", **QWEN7B, "vocab_size": 151674},
            "vision_config": {"model_type": "internvl_vision", **INTERN, "attention_bias": True},
        },
    ),
    "OpenGVLab/InternVL3-8B": (
        7_944_373_760,
        {
            "model_type": "internvl_chat",
            "downsample_ratio": 0.5,
            "llm_config": {"model_type": "qwen2", **QWEN7B, "vocab_size": 151674},
            "vision_config": {"model_type": "intern_vit_6b", **INTERN, "qkv_bias": True, "qk_normalization": False},
        },
    ),
    "microsoft/Phi-3.5-vision-instruct": (
        4_146_621_440,
        {
            "model_type": "phi3_v",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "num_hidden_layers": 32,
            "vocab_size": 32064,
            "embd_layer": {"embedding_cls": "image", "use_hd_transform": True},
            "img_processor": {"model_name": "openai/clip-vit-large-patch14-336", "image_dim_out": 1024},
        },
    ),
    "microsoft/Phi-4-multimodal-instruct": (
        5_574_460_384,
        {
            "model_type": "phi4mm",
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "num_hidden_layers": 32,
            "vocab_size": 200064,
            "tie_word_embeddings": True,
            "partial_rotary_factor": 0.75,
            "audio_processor": {
                "name": "cascades",
                "config": {
                    "attention_dim": 1024,
                    "attention_heads": 16,
                    "linear_units": 1536,
                    "num_blocks": 24,
                    "input_size": 80,
                    "kernel_size": 3,
                    "time_reduction": 8,
                    "depthwise_multiplier": 1,
                    "depthwise_seperable_out_channel": 1024,
                    "ext_pw_out_channel": 1024,
                    "nemo_conv_settings": {"conv_channels": 1024},
                    "relative_attention_bias_args": {"t5_bias_max_distance": 500, "type": "t5"},
                },
            },
            "embd_layer": {"embedding_cls": "image_audio"},
            "vision_lora": {"r": 256},
            "speech_lora": {"r": 320},
        },
    ),
}
"""Number of parameters and sizes of published models. Source: the headers of the files and the config.json of these
repositories on the Hugging Face hub."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers_of_parameters(name: str) -> None:
    published, config = PUBLISHED[name]
    spec = from_config(copy.deepcopy(config), name="x")
    assert count_parameters(spec).total + sum(tower.parameters or 0 for tower in spec.towers) == published
    assert not any(tower.doubts for tower in spec.towers)


@pytest.mark.parametrize(
    ("name", "published"), [("llama4-scout", 108_641_793_536), ("llama4-maverick", 401_583_781_376)]
)
def test_bundled_models_have_the_published_number_with_their_towers(name: str, published: int) -> None:
    spec = load_bundled(name)
    assert count_parameters(spec).total + sum(tower.parameters or 0 for tower in spec.towers) == published
