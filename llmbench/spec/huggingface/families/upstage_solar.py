"""Importer for Upstage's Solar."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention
from llmbench.spec.huggingface.families.deepseek import deepseek_model
from llmbench.spec.huggingface.layer_lists import num_layers
from llmbench.spec.model import ModelSpec


@family("solar_open")
def solar_open(c: Config) -> ModelSpec:
    """Solar Open is GLM-4.5 with experts in all layers. RoPE rotates all dimensions of a head."""
    c.ignore("first_k_dense_replace", "intermediate_size", "partial_rotary_factor", "use_qk_norm")
    mixer = attention(c, qkv_bias=c.flag("attention_bias"))
    return deepseek_model(c, mixer, positions_dim=mixer.head_dim, sparse=[True] * num_layers(c))
