"""Importer for HRM-Text by Sapient Intelligence."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, gated, norm, vector
from llmbench.spec.huggingface.layer_lists import MOST_LAYERS, expect_depths
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import Embedding, Layer, ModelSpec


@family("hrm_text")
def hrm_text(c: Config) -> ModelSpec:
    """HRM-Text repeats two stacks of layers: several runs of the low stack, then one run of the high stack, and so on.

    Each layer has one set of weights, and caches keys and values in each run. transformers 5 saves the number of all
    runs of layers as `num_hidden_layers`, and the number of layers per stack as `num_layers_per_stack`.
    """
    depth = c.size("num_layers_per_stack", c.size("num_hidden_layers"))
    high, low = c.size("H_cycles"), c.size("L_cycles")
    runs = depth * high * (low + 1)
    expect_depths(c, min(runs, MOST_LAYERS + 1), depth)
    c.put("num_hidden_layers", runs)
    c.ignore("L_bp_cycles", "prefix_lm")
    bias = c.flag("attention_bias")
    heads = c.size("num_attention_heads")  # the class has as many key heads, whatever num_key_value_heads says
    mixer = attention(c, num_key_value_heads=heads, qkv_bias=bias, output_bias=bias, output_gate="elementwise")
    c.ignore("num_key_value_heads")
    ffn = gated(c)

    def stack(name: str) -> list[tuple[str, Layer]]:
        tags = [f"{name}{index}" for index in range(depth)]
        return [(tag, block(mixer, ffn, shared_weights=tag)) for tag in tags]

    c.unbuildable("the states of the two stacks, which are added before each run, are unsupported")
    return decoder(
        c,
        (stack("low") * low + stack("high")) * high,
        norm=norm(c, weight=False),
        positions=rope(c, head_dim=mixer.head_dim),
        embedding=Embedding(scale=c.number("embedding_scale", 1 / (c.number("initializer_range", 0.02) or 1.0))),
        extra=(vector("low_state", "other", c.size("hidden_size")),),
    )
