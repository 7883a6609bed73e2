"""Importers for OLMo 1 to 3, OLMoE, FlexOlmo and OLMo Hybrid by the Allen Institute for AI."""

from __future__ import annotations

from llmbench.spec.ffn import Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    attention,
    block,
    decoder,
    expect_divisible_heads,
    expect_silu,
    gated,
    head_dim_of,
    moe,
    norm,
)
from llmbench.spec.huggingface.layer_lists import layer_types, linear_layer_types, num_layers
from llmbench.spec.huggingface.rotation import expect_rope_type, rope
from llmbench.spec.mixer import GatedDeltaNet, QKNorm
from llmbench.spec.model import ModelSpec, Placement
from llmbench.spec.position import NoPositions, Rope


@family("olmo")
def olmo(c: Config) -> ModelSpec:
    """OLMo 1 has LayerNorms without weights and biases."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, clip_qkv=c.optional_number("clip_qkv"))
    plain = norm(c, "layernorm", weight=False, bias=False)
    return decoder(c, block(mixer, gated(c, bias=False)), norm=plain, positions=rope(c, head_dim=mixer.head_dim))


@family("olmo2", "olmo3")
def olmo2(c: Config) -> ModelSpec:
    """OLMo 2 and 3 have norms on the outputs of sublayers, and norms on q and k that cover all heads together.

    In OLMo 3, three of four layers have a sliding window.
    """
    bias = c.flag("attention_bias")
    window = c.window() if c.model_type == "olmo3" else None
    count = num_layers(c)
    derived = ["sliding_attention" if window and (i + 1) % 4 else "full_attention" for i in range(count)]
    kinds = layer_types(c, derived)
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": QKNorm(over="full")}
    by_type = c.model_type == "olmo3"  # the class of OLMo 2 reads one RoPE for all layers
    positions = rope(c, head_dim=head_dim_of(c), layer_type="full_attention" if by_type else None)
    local_positions = rope(c, head_dim=head_dim_of(c), layer_type="sliding_attention") if by_type else positions
    if c.model_type == "olmo3" and not c.table("rope_parameters"):  # rope_scaling applies to full attention only
        local_positions = Rope(theta=local_positions.theta, rotary_dim=local_positions.rotary_dim)
        expect_rope_type(c)
        if local_positions.theta != 500000.0:
            c.unbuildable(
                f"rope_theta = {local_positions.theta:g}: in OLMo 3, transformers ignores it in layers with a window"
            )
    ffn = gated(c, bias=False)
    local = attention(
        c, sliding_window=window, positions=None if local_positions == positions else local_positions, **common
    )
    layers = [
        ("local", block(local, ffn, "output"))
        if kind == "sliding_attention"
        else ("global" if window else "block", block(attention(c, **common), ffn, "output"))
        for kind in kinds
    ]
    return decoder(c, layers, norm=norm(c), positions=positions)


@family("olmoe", "flex_olmo")
def olmoe(c: Config) -> ModelSpec:
    """OLMoE has 8 of 64 small experts, and norms on q and k that cover all heads together.

    FlexOlmo also has norms on the outputs of sublayers, like OLMo 2.
    """
    bias = c.flag("attention_bias")
    clip = c.optional_number("clip_qkv")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(over="full"), clip_qkv=clip)
    expect_divisible_heads(c)
    ffn = moe(c, width="intermediate_size", router=Router(normalize=c.flag("norm_topk_prob")))
    placement: Placement = "output" if c.model_type == "flex_olmo" else "pre"
    return decoder(c, block(mixer, ffn, placement), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("olmo_hybrid")
def olmo_hybrid(c: Config) -> ModelSpec:
    """OLMo Hybrid has attention in every fourth layer, and gated delta nets in the other layers.

    Layers with a delta net have norms before the sublayers. Attention layers have norms on the outputs of the
    sublayers.
    """
    bias = c.flag("attention_bias")
    full = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(over="full"))
    heads = c.size("num_attention_heads")
    key_heads = c.size("linear_num_key_heads", heads)
    key_dim = c.size("linear_key_head_dim", int(0.75 * c.size("hidden_size") / key_heads))
    delta = GatedDeltaNet(
        num_key_heads=key_heads,
        num_value_heads=c.size("linear_num_value_heads", heads),
        key_head_dim=key_dim,
        value_head_dim=c.size("linear_value_head_dim", 2 * key_dim),
        conv_kernel=c.size("linear_conv_kernel_dim"),
        negative_eigenvalues=c.flag("linear_allow_neg_eigval"),
        norm_eps=1e-5,
    )
    expect_silu(c, "hidden_act")
    c.ignore(
        "linear_a_log_min",
        "linear_a_log_max",
        "linear_dt_min",
        "linear_dt_max",
        "linear_dt_init_floor",
    )
    count = num_layers(c)
    derived = ["full_attention" if index % 4 == 3 else "linear_attention" for index in range(count)]
    if "full_attention" not in derived:
        derived[-1] = "full_attention"
    ffn = gated(c, bias=False)
    layers = [
        ("attention", block(full, ffn, "output")) if kind == "full_attention" else ("linear", block(delta, ffn))
        for kind in linear_layer_types(c, derived)
    ]
    # A null as base of RoPE switches RoPE off.
    stated = c.table("rope_parameters")
    rotates = stated.get("rope_theta", 0) is not None and not ("rope_theta" in c and c.get("rope_theta") is None)
    positions = rope(c, head_dim=full.head_dim)
    return decoder(c, layers, norm=norm(c), positions=positions if rotates else NoPositions())
