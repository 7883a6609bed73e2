"""Importers for GPT-1, GPT-2 and gpt-oss by OpenAI."""

from __future__ import annotations

from llmbench.spec.ffn import Dense, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, head_dim_of, moe, norm
from llmbench.spec.huggingface.layer_lists import layer_types, num_layers
from llmbench.spec.huggingface.rotation import expect_stated_rotation, rope
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import LearnedPositions


@family("openai-gpt")
def gpt1(c: Config) -> ModelSpec:
    """GPT-1 has a norm after each residual sum. It has no final norm."""
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"), qkv_bias=True, output_bias=True)
    ffn = dense(c, bias=True, width=4 * c.size("hidden_size"), keys=("afn",))
    if ffn.activation == "gelu":  # in configs of GPT-1, "gelu" means the approximation with tanh
        ffn = Dense(intermediate_size=ffn.intermediate_size, activation="gelu_tanh", bias=True)
    return decoder(
        c,
        block(mixer, ffn, "post"),
        norm=norm(c, "layernorm"),
        positions=LearnedPositions(num_positions=c.size("max_position_embeddings")),
        final_norm=False,
    )


@family("gpt2", "gpt-sw3")
def gpt2(c: Config, *, num_key_value_heads: int | None = None) -> ModelSpec:
    """GPT-2 and GPT-SW3 have learned positions, and biases on all projections.

    `num_key_value_heads`: None means one key-value head per query head.
    """
    c.require("add_cross_attention", False)
    # Newer configs of StarCoder contain num_key_value_heads in addition to multi_query.
    c.ignore("num_key_value_heads")
    scale = None if c.flag("scale_attn_weights", True) else 1.0
    if c.flag("scale_attn_by_inverse_layer_idx"):
        c.unbuildable(
            "scale_attn_by_inverse_layer_idx: a factor on the scores that depends on the layer is not supported"
        )
    kv_heads = num_key_value_heads or c.size("num_attention_heads")
    mixer = attention(c, num_key_value_heads=kv_heads, qkv_bias=True, output_bias=True, scale=scale)
    width = c.size("n_inner", 4 * c.size("hidden_size"))
    c.ignore("apply_query_key_layer_scaling", "normalize_attention_scores")
    ffn = dense(c, bias=True, width=width, keys=("activation_function",))
    positions = LearnedPositions(num_positions=c.size("max_position_embeddings"))
    return decoder(c, block(mixer, ffn), norm=norm(c, "layernorm"), positions=positions)


@family("gpt_oss")
def gpt_oss(c: Config) -> ModelSpec:
    """gpt-oss has attention sinks, and biases on attention, router and experts. Every second layer has a sliding
    window."""
    bias = c.flag("attention_bias", True)
    window = c.window()
    count = num_layers(c)
    kinds = layer_types(c, ["sliding_attention" if (i + 1) % 2 else "full_attention" for i in range(count)])
    c.ignore("experts_per_token", "initial_context_length")
    expect_stated_rotation(c)
    if c.number("swiglu_limit", 7.0) != 7.0:
        c.unbuildable("swiglu_limit is not 7.0, the only supported value")
    ffn = moe(
        c,
        experts="num_local_experts",
        width="intermediate_size",
        router=Router(scores="softmax_topk", bias=True),
        bias=True,
        activation="swiglu_oai",
    )
    common = {"qkv_bias": bias, "output_bias": bias, "sinks": True}
    layers = [
        ("local", block(attention(c, sliding_window=window, **common), ffn))
        if kind == "sliding_attention"
        else ("global", block(attention(c, **common), ffn))
        for kind in kinds
    ]
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))
