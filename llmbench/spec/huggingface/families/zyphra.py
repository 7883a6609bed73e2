"""Importers for Zamba 1, Zamba 2 and ZAYA1 by Zyphra."""

from __future__ import annotations

import math

from llmbench.spec.ffn import FFN, Gated, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    activation,
    attention,
    block,
    decoder,
    gated,
    head_dim_of,
    mixture_layers,
    moe,
    norm,
    vector,
)
from llmbench.spec.huggingface.layer_lists import newer_layer_type, num_layers, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Attention, Mamba, Mamba2, QKNorm
from llmbench.spec.model import ExtraWeight, Head, Layer, ModelSpec
from llmbench.spec.position import NoPositions


@family("zamba")
def zamba(c: Config) -> ModelSpec:
    """Zamba has Mamba layers and one shared attention block.

    Before each Mamba layer of type "hybrid", the shared block runs. Its weights are the same each time.
    """
    hidden, count = c.size("hidden_size"), num_layers(c)
    # x_proj and dt_proj have the same total size for every number of Mamba heads. The spec describes a single head.
    ssm = Mamba(
        intermediate_size=c.size("mamba_expand") * hidden,
        state_size=c.size("mamba_d_state"),
        conv_kernel=c.size("mamba_d_conv"),
        time_step_rank=c.size_or_auto("mamba_dt_rank", math.ceil(hidden / 16)),
        conv_bias=c.flag("mamba_conv_bias", True),
        proj_bias=c.flag("mamba_proj_bias"),
    )
    c.ignore("n_mamba_heads", "hidden_mamba_act", "ffn_hidden_size", "num_experts", "num_experts_per_tok")
    c.ignore("use_associative_scan")
    _doubt_untied(c)
    width = c.optional_size("attention_hidden_size") or 2 * hidden
    head_dim = c.optional_size("attention_head_dim") or 2 * hidden // c.size("num_attention_heads")
    shared = _memory_block("shared", _wide_attention(c, width, head_dim), gated(c, bias=False), hidden)
    period, offset = c.size("attn_layer_period"), c.count("attn_layer_offset")
    derived = ["linear_attention", "linear_attention", "hybrid"]
    derived += ["hybrid" if i % period == offset else "linear_attention" for i in range(count - 3)]
    kinds = [newer_layer_type(kind) for kind in c.entries("layers_block_type") or derived]
    linear = ExtraWeight(name="linear", shape=(hidden, hidden), role="matmul", component="other")
    layers = []
    for kind in kinds:
        if kind == "hybrid":
            layers.append(("shared", shared))
        layers.append(("mamba", block(ssm, None, extra=(linear,) if kind == "hybrid" else ())))
    c.put("num_hidden_layers", len(layers))
    return decoder(c, layers, norm=norm(c), positions=NoPositions())


@family("zamba2")
def zamba2(c: Config) -> ModelSpec:
    """Zamba-2 has Mamba-2 layers and `num_mem_blocks` shared blocks.

    Before each Mamba-2 layer of type "hybrid", a shared block runs. The shared blocks take turns. Each use of a shared
    block has its own low-rank adapters.
    """
    hidden = c.size("hidden_size")
    kinds = [newer_layer_type(kind) for kind in c.entries("layers_block_type") or _ZAMBA2_LAYERS]
    heads, width = c.size("n_mamba_heads"), c.size("mamba_expand") * hidden
    if width % heads:
        raise c.error("n_mamba_heads", f"{heads} must divide mamba_expand × hidden_size = {width}")
    ssm = Mamba2(
        num_heads=heads,
        head_dim=width // heads,
        state_size=c.size("mamba_d_state"),
        n_groups=c.size("mamba_ngroups"),
        conv_kernel=c.size("mamba_d_conv"),
        chunk_size=c.size("chunk_size", 256),
        proj_bias=c.flag("add_bias_linear"),
    )
    # transformers ignores these keys and derives their values from other keys.
    c.ignore(
        "attention_hidden_size",
        "attention_head_dim",
        "mamba_headdim",
        "kv_channels",
        "num_query_groups",
        "ffn_hidden_size",
        "hybrid_layer_ids",
        "use_long_context",
        "mamba_expand",
        "state_size",
        "num_hidden_layers",
        "use_conv_bias",
        "use_mem_eff_path",
        "use_shared_mlp_adapter",
    )
    _doubt_untied(c)
    head_dim = 2 * hidden // c.size("num_attention_heads")
    mixer = _wide_attention(c, 2 * hidden, head_dim)
    inner = c.optional_size("intermediate_size") or 4 * hidden
    ffn = Gated(intermediate_size=inner, activation=activation(c), bias=c.flag("add_bias_linear"))
    rank, blocks = c.size("adapter_rank"), c.size("num_mem_blocks")
    own = [ExtraWeight(name="linear", shape=(hidden, hidden), role="matmul", component="other")]
    own += _adapter("ffn.adapter", hidden, rank, 2 * inner, "mlp")
    if c.flag("use_shared_attention_adapter"):
        for letter in "qkv":
            own += _adapter(f"attention.{letter}_adapter", 2 * hidden, rank, 2 * hidden, "attention")
    layers: list[tuple[str, Layer]] = []
    for used, kind in _counted(kinds):
        if kind == "hybrid":
            tag = f"shared{used % blocks}"
            layers.append((tag, _memory_block(tag, mixer, ffn, hidden)))
        layers.append(("mamba", block(ssm, None, extra=tuple(own) if kind == "hybrid" else ())))
    c.put("num_hidden_layers", len(layers))
    positions = rope(c, head_dim=head_dim)
    return decoder(c, layers, norm=norm(c), positions=positions if c.flag("use_mem_rope") else NoPositions())


_ZAMBA2_LAYERS = (
    ["mamba"]
    + (["mamba"] * 5 + ["hybrid"]) * 7
    + ["mamba"] * 4
    + ["hybrid"]
    + ["mamba"] * 3
    + ["hybrid"]
    + ["mamba"] * 2
)
"""The layer types of Zamba2-2.7B. transformers uses them as the default."""


def _memory_block(tag: str, mixer: Attention, ffn: FFN, hidden: int) -> Layer:
    """Return Zamba's shared block: attention, then a feed-forward, without residual connections.

    - tag: the name of the set of weights.
    - hidden: hidden_size of the model.

    The input of the block is the concatenation of the hidden state and the embedding.
    """
    assert mixer.input_size is not None
    norms = (
        ExtraWeight(name="input_norm", shape=(mixer.input_size,), role="vector", component="norms"),
        ExtraWeight(name="ffn_norm", shape=(hidden,), role="vector", component="norms"),
    )
    return Layer(mixer=mixer, ffn=ffn, placement="none", shared_weights=tag, extra=norms)


def _doubt_untied(c: Config) -> None:
    """Mark the spec as approximate if the head is not tied to the embedding."""
    if not c.flag("tie_word_embeddings"):
        c.doubt("tie_word_embeddings = False: transformers then gives each use of the shared block its own weights")


def _wide_attention(c: Config, width: int, head_dim: int) -> Attention:
    """Return attention whose input has `width` elements per token, usually 2 × hidden_size.

    The factor on the scores is √(2 / head_dim).
    """
    return attention(c, head_dim=head_dim, input_size=width, scale=(max(1, head_dim) / 2) ** -0.5)


def _counted(kinds: list[str]) -> list[tuple[int, str]]:
    """Return for each layer the number of hybrid layers before this layer, and the type of this layer."""
    return [(kinds[:index].count("hybrid"), kind) for index, kind in enumerate(kinds)]


def _adapter(name: str, inputs: int, rank: int, outputs: int, component: str) -> list[ExtraWeight]:
    """Return the two matrices of a low-rank adapter, which map `inputs` to `rank` and `rank` to `outputs` elements."""
    place: dict[str, object] = {"role": "matmul", "component": component}
    return [
        ExtraWeight(name=f"{name}.down", shape=(rank, inputs), **place),  # type: ignore[arg-type]
        ExtraWeight(name=f"{name}.up", shape=(outputs, rank), **place),  # type: ignore[arg-type]
    ]


@family("zaya")
def zaya(c: Config) -> ModelSpec:
    """ZAYA1 has short convolutions on queries and keys. Half of each value comes from the previous token.

    The router is a small network. It selects one expert per token, or no expert.
    """
    count, hidden, bias = num_layers(c), c.size("hidden_size"), c.flag("attention_bias")
    window, head_dim = c.window(), head_dim_of(c)
    qk_norm = QKNorm(norm="l2norm", weight=False)
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": qk_norm}
    mixers = [
        ("local" if near else "global", attention(c, sliding_window=window if near else None, **common))
        for near in windowed_layers(c, lambda index: False, "hybrid_sliding", "hybrid")
    ]
    narrow = c.size("router_hidden_size")
    ffn = moe(c, router=Router(correction="buffer", hidden_size=narrow), zero_experts=1)
    kv_heads = c.size("num_key_value_heads")
    channels = (c.size("num_attention_heads") + kv_heads) * head_dim
    first, second = c.size("cca_time0"), c.size("cca_time1")
    c.doubt("short convolutions: their weights are counted, but not their FLOPs and their state")
    c.doubt("llmbench counts FLOPs of one expert per token, although the router may select no expert for a token")
    extra = (
        vector("attention.conv", "attention_extra", channels, first + 1),
        vector("attention.grouped_conv", "attention_extra", channels, head_dim * second + 1),
        vector("attention.key_scale", "attention_norms", kv_heads),
        vector("residual_scales", "other", 8, hidden),
    )
    state = (vector("ffn.router.state_scale", "router", narrow),)
    layers: list[tuple[str, Layer]] = []
    for index, mixer in enumerate(mixers):
        layers += mixture_layers([mixer], [True], ffn, None, extra=extra + (state if index else ()))
    assert len(layers) == count
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim, layer_type="hybrid", partial=0.5),
        head=Head(bias=c.flag("lm_head_bias")),
        extra=(vector("embedding_scales", "other", 2, hidden),),
    )
