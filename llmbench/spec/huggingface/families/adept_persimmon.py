"""Importer for Persimmon and for the text part of Fuyu, by Adept."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import ModelSpec


@family("persimmon", "fuyu")
def persimmon(c: Config) -> ModelSpec:
    """Persimmon has squared ReLU, LayerNorms, biases, and a LayerNorm on each head of q and k.

    The text part of Fuyu is a Persimmon model. Its keys are at the top level of Fuyu's config.
    """
    if c.model_type == "fuyu":
        c.note("multimodal config `fuyu`: all figures but the bytes of weights are those of its text part")
        c.ignore("image_size", "patch_size", "num_channels")
    flat = {
        "hidden_size": 4096, "intermediate_size": 16384, "num_hidden_layers": 36, "num_attention_heads": 64,
        "vocab_size": 262144, "max_position_embeddings": 16384,
    }  # fmt: skip
    for key, value in flat.items():
        if c.get(key) is None:
            c.put(key, value)
    c.require("num_key_value_heads", c.size("num_attention_heads"))
    qk_norm = QKNorm(norm="layernorm", bias=True) if c.flag("qk_layernorm", True) else None
    mixer = attention(
        c, num_key_value_heads=c.size("num_attention_heads"), qkv_bias=True, output_bias=True, qk_norm=qk_norm
    )
    return decoder(
        c,
        block(mixer, dense(c, bias=True, default="relu2")),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim, partial=0.5),
    )
