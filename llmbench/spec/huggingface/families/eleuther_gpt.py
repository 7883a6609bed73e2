"""Importers for GPT-Neo, GPT-J and GPT-NeoX (Pythia) by EleutherAI."""

from __future__ import annotations

from msgspec.structs import replace

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, norm
from llmbench.spec.huggingface.layer_lists import num_layers
from llmbench.spec.huggingface.rotation import expect_fixed_rotation, rope
from llmbench.spec.model import Head, Layer, ModelSpec, Placement
from llmbench.spec.position import LearnedPositions


@family("gpt_neo")
def gpt_neo(c: Config) -> ModelSpec:
    """GPT-Neo has no biases on q, k and v, and does not scale the attention scores.

    The config key `attention_types` states which layers have a sliding window.
    """
    count = num_layers(c)
    # Configs that transformers has saved also contain attention_layers, with one type per layer. It has precedence.
    listed = c.get("attention_layers")
    kinds: list[str] = []
    for item in c.entries("attention_types", nested=True) or [[["global", "local"], -(-count // 2)]]:
        if not (isinstance(item, list) and len(item) == 2 and isinstance(item[0], list) and type(item[1]) is int):
            raise c.error("attention_types", 'must be a list like [[["global", "local"], 12]]')
        kinds += [str(kind) for kind in item[0]] * min(item[1], -(-count // max(1, len(item[0]))))
        if len(kinds) >= count:
            break
    if len(kinds) < count:
        raise c.error("attention_types", f"states the type of only {len(kinds)} of {count} layers")
    if isinstance(listed, list) and len(listed) == count:
        kinds = [str(kind) for kind in listed]
    ffn = dense(
        c,
        bias=True,
        width=c.size("intermediate_size", 4 * c.size("hidden_size")),
        keys=("activation_function",),
    )
    heads, window = c.size("num_attention_heads"), c.window("window_size")
    layers: list[tuple[str, Layer]] = []
    for kind in kinds[:count]:
        span = window if kind == "local" else None
        mixer = attention(c, num_key_value_heads=heads, output_bias=True, scale=1.0, sliding_window=span)
        layers.append(("local" if kind == "local" else "global", block(mixer, ffn)))
    return decoder(
        c,
        layers,
        norm=norm(c, "layernorm"),
        positions=LearnedPositions(num_positions=c.size("max_position_embeddings")),
    )


@family("gptj")
def gptj(c: Config) -> ModelSpec:
    """GPT-J has attention and feed-forward in parallel after one norm.

    Feed-forward and head have biases, attention has none. RoPE rotates 64 dimensions per head, in pairs of neighbours.
    """
    heads = c.size("num_attention_heads")
    c.ignore("scale_attn_weights", "rotary")
    expect_fixed_rotation(c)
    mixer = attention(c, num_key_value_heads=heads)
    width = c.size("n_inner", 4 * c.size("hidden_size"))
    return decoder(
        c,
        block(mixer, dense(c, bias=True, width=width, keys=("activation_function",)), "parallel"),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim, interleaved=True),
        head=Head(bias=True),
    )


@family("gpt_neox")
def gpt_neox(c: Config) -> ModelSpec:
    """GPT-NeoX and Pythia have attention and feed-forward in parallel, each after its own norm.

    RoPE rotates a quarter of each head. The language-model head has no bias.
    """
    bias = c.flag("attention_bias", True)
    heads = c.size("num_attention_heads")
    mixer = attention(c, num_key_value_heads=heads, qkv_bias=bias, output_bias=bias)
    placement: Placement = "parallel_two" if c.flag("use_parallel_residual", True) else "pre"
    return decoder(
        c,
        block(mixer, dense(c, bias=True, keys=("hidden_act",)), placement),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim, partial=0.25),
    )


@family("gpt_neox_japanese")
def gpt_neox_japanese(c: Config) -> ModelSpec:
    """GPT-NeoX Japanese has only one bias. It belongs to the output projection of attention in the last layer."""
    hidden, count = c.size("hidden_size"), num_layers(c)
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"))
    width = c.size("intermediate_multiple_size", 4) * hidden
    layer = block(mixer, dense(c, bias=False, width=width))
    last = block(replace(mixer, output_bias=True), layer.ffn)
    return decoder(
        c,
        [("block", layer)] * (count - 1) + [("last", last)],
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim),
    )
