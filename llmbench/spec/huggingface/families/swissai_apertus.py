"""Importer for Apertus of the Swiss AI Initiative."""

from __future__ import annotations

from llmbench.spec.ffn import Dense
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import HEAD_NORM, attention, block, decoder, dense, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec


@family("apertus")
def apertus(c: Config) -> ModelSpec:
    """Apertus has norms on q and k. Its activation is xIELU, with two trained and two stored numbers per layer."""
    bias = c.flag("attention_bias")
    c.require("qk_norm", True)
    c.require("post_norm", False)
    c.require("mlp_bias", False)
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=HEAD_NORM)
    ffn = dense(c, bias=False, default="xielu")
    if ffn.activation == "xielu":
        ffn = Dense(intermediate_size=ffn.intermediate_size, activation="xielu", activation_parameters=2)
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))
