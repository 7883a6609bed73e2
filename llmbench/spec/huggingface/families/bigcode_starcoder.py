"""Importers for StarCoder 1 and 2 by BigCode."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, norm
from llmbench.spec.huggingface.families.openai_gpt import gpt2
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec


@family("gpt_bigcode")
def gpt_bigcode(c: Config) -> ModelSpec:
    """StarCoder is GPT-2 with one key-value head. If `multi_query` is false, each query head has its own key-value
    head."""
    return gpt2(c, num_key_value_heads=1 if c.flag("multi_query", True) else None)


@family("starcoder2")
def starcoder2(c: Config) -> ModelSpec:
    """StarCoder 2 has biases, LayerNorms and feed-forwards like GPT-2, but RoPE and grouped-query attention."""
    bias = c.flag("use_bias", True)
    window = c.window()
    mixer = attention(c, qkv_bias=bias, output_bias=bias, sliding_window=window)
    c.require("norm_type", "layer_norm")
    c.ignore("activation_function", "scale_attn_weights")
    c.require("mlp_type", "default")
    return decoder(
        c,
        block(mixer, dense(c, bias=bias)),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim),
    )
