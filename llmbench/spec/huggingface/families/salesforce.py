"""Importers for CTRL and CodeGen by Salesforce."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense
from llmbench.spec.huggingface.families.eleuther_gpt import gptj
from llmbench.spec.model import Embedding, Head, ModelSpec, Norm
from llmbench.spec.position import SinusoidalPositions


@family("ctrl")
def ctrl(c: Config) -> ModelSpec:
    """CTRL has sinusoidal positions and norms before the sublayers. All projections and the head have biases."""
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"), qkv_bias=True, output_bias=True)
    if c.number("layer_norm_epsilon", 1e-6) != 1e-6:
        c.unbuildable(
            "layer_norm_epsilon is not 1e-6: CTRL's last norm has this epsilon, but all other norms have 1e-6"
        )
    return decoder(
        c,
        block(mixer, dense(c, bias=True, width=c.size("dff"), keys=(), default="relu")),
        norm=Norm(kind="layernorm", bias=True, eps=1e-6),
        positions=SinusoidalPositions(halves=True),
        embedding=Embedding(scale=c.size("hidden_size") ** 0.5),
        head=Head(bias=True),
    )


@family("codegen")
def codegen(c: Config) -> ModelSpec:
    """CodeGen has the architecture of GPT-J and a model type of its own."""
    return gptj(c)
