"""Mixtures of experts with parts that no other family has."""

from __future__ import annotations

from llmbench.spec.ffn import MoE, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.arrange import (
    arrange,
    local_layers,
    matrix,
    no_effect,
    num_layers,
    shared_experts,
    sparse_layers,
    vector,
)
from llmbench.spec.huggingface.families.dense import HEAD_NORM
from llmbench.spec.huggingface.families.mixture import TOPK_SOFTMAX
from llmbench.spec.huggingface.families.shared_moe import SIGMOID, mtp_of
from llmbench.spec.huggingface.parts import (
    activation,
    attention,
    block,
    decoder,
    deepseek_router,
    gated,
    head_dim_of,
    moe,
    norm,
    rope,
    states_rotation,
)
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec
from llmbench.spec.position import NoPositions, Rope


@family("mimo_v2_flash")
def mimo(c: Config) -> ModelSpec:
    """MiMo-V2-Flash: keys 192 wide and values 128, five local layers with sinks to one global, each its
    heads."""
    count = num_layers(c)
    bias = c.flag("attention_bias")
    pattern = c.entries("hybrid_layer_pattern", count)
    near = local_layers(c, lambda index: bool(pattern[index]) if pattern else index > 0 and (index + 1) % 6 != 0)
    frequency = c.entries("moe_layer_freq", count)
    sparse = sparse_layers(c, lambda index: bool(frequency[index]) if frequency else index > 0)
    window, before = c.window(), c.optional_size("sliding_window_size")
    if before is not None and window == before:
        # The hub's own config. Published sizes take the first; transformers' class, where it reads the second, sees one
        # key more: those before a query, and its own.
        c.inexact(
            f"sliding_window {window} counts a query's own key, sliding_window_size {before} in its class does not"
        )
    elif before is not None:
        window = before + 1
    no_effect(c, "attention_chunk_size swa_rope_theta topk_method scoring_func")
    states_rotation(c)
    positions, near_positions = (_mimo_rope(c, kind) for kind in ("full_attention", "sliding_attention"))
    value_scale = c.optional_number("attention_value_scale")
    full = attention(
        c,
        v_head_dim=c.optional_size("v_head_dim"),
        value_scale=value_scale,
        qkv_bias=bias,
        sinks=c.flag("add_full_attention_sink_bias"),
    )
    local = attention(
        c,
        num_attention_heads=c.size("swa_num_attention_heads", full.num_attention_heads),
        num_key_value_heads=c.size("swa_num_key_value_heads", 2 * full.num_key_value_heads),
        head_dim=c.size("swa_head_dim", full.head_dim),
        v_head_dim=c.optional_size("swa_v_head_dim") or full.v_head_dim,
        qkv_bias=bias,
        sliding_window=window,
        sinks=c.flag("add_swa_attention_sink_bias", True),
        value_scale=value_scale,
        positions=near_positions,
    )
    shared = shared_experts(c, "n_shared_experts", c.size("moe_intermediate_size"))
    ffn = moe(c, experts="n_routed_experts", router=deepseek_router(c), shared=shared)
    mixers = [("local", local) if is_local else ("global", full) for is_local in near]
    layers = arrange(mixers, sparse, ffn, gated(c, bias=False))
    return decoder(c, layers, norm=norm(c), positions=positions)


def _mimo_rope(c: Config, kind: str) -> Rope:
    """A third of each head turns unless the config says otherwise or scales the rotation."""
    whole = rope(c, head_dim=head_dim_of(c), layer_type=kind)
    return whole if whole.scaling else rope(c, head_dim=head_dim_of(c), layer_type=kind, partial=0.334)


@family("step3p5")
def step3p5(c: Config) -> ModelSpec:
    """Step 3.5: a gate a head, local layers with query heads of their own number, three dense layers
    first."""
    count = num_layers(c)
    mtp = c.count("num_nextn_predict_layers")
    for key in ("layer_types", "mlp_layer_types"):  # may go on with those of the prediction modules
        given = c.get(key)
        if isinstance(given, list) and len(given) == count + mtp:
            c.put(key, given[:count])
    bias = c.flag("attention_bias")
    other = c.table("attention_other_setting")
    local_heads = c.optional_size("num_sliding_attention_heads") or other.get("num_attention_heads")
    if other and (other.get("num_attention_groups"), other.get("head_dim")) not in (
        (None, None),
        (c.size("num_key_value_heads"), c.size("head_dim")),
    ):
        c.doubt("attention_other_setting has other key-value heads, which is not understood")
    gate = c.flag("use_head_wise_attn_gate", True) and c.get("gating") in (None, True, "per-head")
    if not gate:
        c.doubt("an attention gate that is not one a head is not understood")
    c.require("use_moe", True)
    c.require("use_moe_router_bias", True)
    c.require("sink", False)
    window = c.window()
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM, "output_gate": "headwise"}
    full = attention(c, **common)
    heads = local_heads if type(local_heads) is int and local_heads > 0 else full.num_attention_heads
    local = attention(c, num_attention_heads=heads, sliding_window=window, **common)
    mixers = [("local", local) if near else ("global", full) for near in local_layers(c, lambda index: False)]
    listed = c.get("moe_layers_enum")
    names = listed.split(",") if isinstance(listed, str) else listed if isinstance(listed, list) else None
    chosen = set(range(3, count)) if names is None else {int(name) for name in names if str(name).strip().isdigit()}
    keys = ("moe_num_experts", "n_routed_experts", "num_local_experts")
    experts = next((c.size(key) for key in keys if key in c), 288)
    mlp_bias = c.flag("mlp_bias")
    ffn = MoE(
        num_experts=experts,
        num_experts_per_tok=c.size("num_experts_per_tok"),
        intermediate_size=c.size("moe_intermediate_size"),
        activation=activation(c),
        router=SIGMOID,
        shared=SharedExperts(intermediate_size=c.size("share_expert_dim"), bias=mlp_bias),
    )
    if c.spells("num_local_experts") and not any(map(c.spells, keys[:2])):
        c.doubt("num_local_experts alone is not the name that Step 3.5 reads")
    c.ignore(*keys)
    no_effect(
        c,
        """
        swiglu_limits swiglu_limits_shared query_pre_attn_scalar moe_router_scaling_factor
        partial_rotary_factors yarn_only_types zero_centered need_fp32_gate norm_expert_weight
        moe_router_activation moe_every_n_layer moe_layer_offset att_impl_type use_qk_norm
        mtp_layer_types mtp_mlp_layer_types use_rope_layers use_head_wise_attn_gate gating
        moe_layers_enum
        """,
    )
    c.inexact("limits on gates, the scale of scores and rotations by layer (Step 3.5)")
    sparse = sparse_layers(c, lambda index: index in chosen)
    layers = arrange(mixers, sparse, ffn, gated(c, bias=mlp_bias))
    return decoder(
        c,
        layers,
        norm=norm(c, unit_offset=True),
        positions=rope(c, head_dim=full.head_dim),
        next_token_prediction=mtp_of(mtp, list(layers)),
    )


@family("inkling_text")
def inkling(c: Config) -> ModelSpec:
    """Inkling: short convolutions on keys, values and both sublayers' outputs, positions by learned distance
    logits, shared experts that the router scores too."""
    hidden = c.size("hidden_size")
    taps, rank, extent = c.size("conv_kernel_size"), c.size("d_rel"), c.size("rel_extent")
    window = c.size("sliding_window_size")
    ids = c.entries("local_layer_ids")
    near = local_layers(
        c, lambda index: index in ids if ids is not None else (index + 1) % 6 != 0, "hybrid_sliding", "hybrid"
    )
    if "dense_intermediate_size" in c and c.get("dense_intermediate_size") is not None:
        c.put("moe_intermediate_size", c.get("intermediate_size"))
        c.put("intermediate_size", c.get("dense_intermediate_size"))
    first = c.count("dense_mlp_idx")
    sparse = sparse_layers(c, lambda index: index >= first)
    width = c.size("moe_intermediate_size")
    ffn = moe(
        c,
        experts="n_routed_experts",
        router=Router(scores="sigmoid", correction="buffer", normalize=True, scale=c.number("route_scale", 1.0)),
        shared=shared_experts(c, "n_shared_experts", width),
    )
    c.doubt("short convolutions and learned distance logits are counted as weights, not as work or state")
    c.ignore(
        *"""
        log_scaling_n_floor log_scaling_alpha shared_expert_sink rms_norm_eps_moe_gate route_scale
        num_mtp_layers chain_hidden_post_norm mtp_hidden_states_first mtp_local_layer_ids
        unpadded_vocab_size
        """,
    )
    full = attention(c, qk_norm=HEAD_NORM)
    local = attention(
        c,
        num_attention_heads=c.size("swa_num_attention_heads"),
        num_key_value_heads=c.size("swa_num_key_value_heads"),
        head_dim=c.size("swa_head_dim"),
        qk_norm=HEAD_NORM,
        sliding_window=window,
    )
    layers: list[tuple[str, Layer]] = []
    for is_local, has_experts in zip(near, sparse, strict=True):
        mixer = local if is_local else full
        values = mixer.num_key_value_heads * mixer.head_dim
        extra = [
            matrix("attention.r_proj", "attention_extra", mixer.num_attention_heads * rank, hidden),
            matrix("attention.distance", "attention_extra", rank, window if is_local else extent),
            vector("attention.convs", "attention_extra", 2 * values + hidden, taps),
            vector("ffn.conv", "other", hidden, taps),
        ]
        if has_experts:
            extra += [
                matrix("ffn.router.shared", "router", c.count("n_shared_experts"), hidden),
                vector("ffn.router.scale", "router", 1),
            ]
        else:
            extra.append(vector("ffn.scale", "mlp", 1))
        name = "local" if is_local else "global"
        layers += arrange([(name, mixer)], [has_experts], ffn, gated(c, bias=False), extra=tuple(extra))
    scale = 1 / (c.number("logits_mup_width_multiplier", 1.0) or 1.0)
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=NoPositions(),
        embedding=Embedding(norm=True),
        head=Head(scale=scale),
    )


@family("zaya")
def zaya(c: Config) -> ModelSpec:
    """ZAYA1: keys and queries through two short convolutions, half of each value from the token before, one
    expert (or none) chosen by a small network."""
    count, hidden, bias = num_layers(c), c.size("hidden_size"), c.flag("attention_bias")
    window, head_dim = c.window(), head_dim_of(c)
    qk_norm = QKNorm(norm="l2norm", weight=False)
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": qk_norm}
    mixers = [
        ("local" if near else "global", attention(c, sliding_window=window if near else None, **common))
        for near in local_layers(c, lambda index: False, "hybrid_sliding", "hybrid")
    ]
    narrow = c.size("router_hidden_size")
    ffn = moe(c, router=Router(correction="buffer", hidden_size=narrow), zero_experts=1)
    kv_heads = c.size("num_key_value_heads")
    channels = (c.size("num_attention_heads") + kv_heads) * head_dim
    first, second = c.size("cca_time0"), c.size("cca_time1")
    c.doubt("short convolutions are counted as weights, not as work or state")
    c.doubt("a token may choose no expert, and then computes less")
    extra = (
        vector("attention.conv", "attention_extra", channels, first + 1),
        vector("attention.grouped_conv", "attention_extra", channels, head_dim * second + 1),
        vector("attention.key_scale", "attention_norms", kv_heads),
        vector("residual_scales", "other", 8, hidden),
    )
    state = (vector("ffn.router.state_scale", "router", narrow),)
    layers: list[tuple[str, Layer]] = []
    for index, mixer in enumerate(mixers):
        layers += arrange([mixer], [True], ffn, None, extra=extra + (state if index else ()))
    assert len(layers) == count
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim, layer_type="hybrid", partial=0.5),
        head=Head(bias=c.flag("lm_head_bias")),
        extra=(vector("embedding_scales", "other", 2, hidden),),
    )


@family("jetmoe")
def jetmoe(c: Config) -> ModelSpec:
    """JetMoE: queries and the output's projection are experts too; a token's heads are those of the chosen
    ones."""
    hidden, kv_heads, head_dim = c.size("hidden_size"), c.size("num_key_value_heads"), c.size("head_dim")
    chosen, experts = c.size("num_experts_per_tok"), c.size("num_local_experts")
    no_effect(
        c,
        """
        num_attention_heads glu moe_num_experts moe_top_k layer_norm_eps applied_layernorm_type
        aux_loss_coef bias rotary_percent rope_percent
        """,
    )
    mixer = attention(c, num_attention_heads=chosen * kv_heads, num_key_value_heads=kv_heads, head_dim=head_dim)
    ffn = moe(
        c,
        experts="num_local_experts",
        width="intermediate_size",
        router=TOPK_SOFTMAX,
        activation=activation(c, "activation_function"),
    )
    c.doubt("the attention experts that a token does not choose are counted as active")
    width = kv_heads * head_dim
    rest: tuple[ExtraWeight, ...] = ()
    if experts > chosen:
        rest = (vector("attention.other_experts", "attention", 2 * (experts - chosen), hidden, width),)
    extra = (
        *rest,
        matrix("attention.router", "router", experts, hidden),
        vector("attention.expert_bias", "attention", hidden),
        vector("ffn.expert_bias", "mlp", hidden),
    )
    return decoder(c, block(mixer, ffn, extra=extra), norm=norm(c), positions=rope(c, head_dim=head_dim))
