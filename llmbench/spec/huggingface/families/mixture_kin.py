"""Mixtures of experts with ordinary attention and factors, biases or routers of their own."""

from __future__ import annotations

from llmbench.spec.ffn import Gated, MoE, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.arrange import (
    arrange,
    local_layers,
    no_effect,
    num_layers,
    shared_experts,
    sparse_layers,
)
from llmbench.spec.huggingface.families.dense import granite_model
from llmbench.spec.huggingface.families.dense_kin import theta_of_layer
from llmbench.spec.huggingface.families.mixture import TOPK_SOFTMAX, divisible
from llmbench.spec.huggingface.parts import (
    activation,
    attention,
    block,
    decoder,
    gated,
    head_dim_of,
    layer_types,
    moe,
    norm,
    rope,
)
from llmbench.spec.mixer import QKNorm, Temperature
from llmbench.spec.model import Head, ModelSpec, NextTokenPrediction
from llmbench.spec.position import NoPositions, Rope


@family("granitemoe", "granitemoeshared", "granitemoe_swa")
def granitemoe(c: Config) -> ModelSpec:
    """Granite 3 with experts; later a shared one, then sinks and windows in three layers of four."""
    bias = c.flag("attention_bias")
    swa = c.model_type == "granitemoe_swa"
    window = c.window() if swa else None
    common = {
        "qkv_bias": bias,
        "output_bias": bias,
        "scale": c.optional_number("attention_multiplier"),
        "sinks": swa,
    }
    width = c.count("shared_intermediate_size") if c.model_type != "granitemoe" else 0
    shared = SharedExperts(intermediate_size=width) if width else None
    ffn = moe(c, experts="num_local_experts", width="intermediate_size", router=TOPK_SOFTMAX, shared=shared)
    scale = c.number("residual_multiplier", 1.0)
    if not swa:
        mixer = attention(c, **common)
        return granite_model(c, block(mixer, ffn, residual_scale=scale), mixer.head_dim)
    thetas = c.entries("layer_rope_theta", num_layers(c)) or [None] * num_layers(c)
    mixers = [
        (
            "local" if near else "global",
            attention(
                c,
                sliding_window=window if near else None,
                positions=theta_of_layer(c, theta),
                **common,
            ),
        )
        for near, theta in zip(local_layers(c, lambda index: index % 4 != 0), thetas, strict=True)
    ]
    layers = arrange(mixers, [True] * num_layers(c), ffn, None, residual_scale=scale)
    return granite_model(c, layers, head_dim_of(c))


@family("dbrx")
def dbrx(c: Config) -> ModelSpec:
    """DBRX: 4 of 16 experts, LayerNorms without bias, its sizes in two nested tables."""
    inner, ffn = c.sub("attn_config"), c.sub("ffn_config")
    heads, hidden = c.size("num_attention_heads"), c.size("hidden_size")
    mixer = attention(
        c,
        num_key_value_heads=inner.size("kv_n_heads", heads),
        head_dim=hidden // heads,
        clip_qkv=inner.optional_number("clip_qkv"),
    )
    inner.ignore("attn_pdrop")
    c.ignore("num_key_value_heads")  # newer files say it at the top too
    act = ffn.table("ffn_act_fn").get("name", "silu")
    ffn.ignore("uniform_expert_assignment", "hidden_size")
    power = ffn.get("moe_normalize_expert_weights")
    if power not in (None, 1, 1.0):
        ffn.inexact(f"experts' weights are normalised by their norm of order {power!r}, not by their sum")
    experts = MoE(
        num_experts=ffn.size("moe_num_experts"),
        num_experts_per_tok=ffn.size("moe_top_k"),
        intermediate_size=ffn.size("ffn_hidden_size"),
        activation="silu" if act == "silu" else "gelu",
        router=Router(normalize=power is not None),
    )
    theta = inner.number("rope_theta", 10000.0)
    inner.doubt_unread()
    ffn.doubt_unread()
    divisible(c)
    positions = rope(c, head_dim=mixer.head_dim)
    if not c.table("rope_parameters"):  # newer files say it there, and that is what is followed
        positions = Rope(theta=theta)
        c.inexact("DBRX's class does not read attn_config.rope_theta")
    return decoder(c, block(mixer, experts), norm=norm(c, "layernorm", bias=False), positions=positions)


@family("ernie4_5_moe", "ernie4_5_vl_moe_text", "ernie4_5_moe_vl")
def ernie_moe(c: Config) -> ModelSpec:
    """ERNIE 4.5: the router's correction is a parameter; experts from `moe_layer_start_index` to
    `..end_index`. In the vision-language models, the experts of text."""
    bias = c.flag("use_bias")
    text = c.model_type == "ernie4_5_vl_moe_text"
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    if c.model_type != "ernie4_5_moe":
        c.inexact("the experts of vision, which are not counted either")
        if text and c.get("moe_intermediate_size") is None:
            c.put("moe_intermediate_size", [1536, 512])
        for key in (
            "moe_intermediate_size",
            "moe_num_experts",
            "moe_layer_start_index",
            "moe_layer_end_index",
        ):
            given = c.get(key)
            if isinstance(given, list) and given:
                c.put(key, given[0])  # the second is that of the experts of vision
    width = c.size("moe_intermediate_size")
    c.require("moe_use_aux_free", True)
    no_effect(
        c,
        """
        moe_capacity moe_gate moe_group moe_multimodal_paths use_rmsnorm fuse_rope
        compression_ratio moe_dropout_prob im_patch_id
        """,
    )
    if c.number("moe_norm_min", 1e-12) > 1e-9:
        c.inexact("moe_norm_min, below which the sum of a token's weights counts as it")
    ffn = MoE(
        num_experts=c.size("moe_num_experts"),
        num_experts_per_tok=c.size("moe_k"),
        intermediate_size=width,
        activation=activation(c),
        router=Router(correction="parameter", normalize=True),
        shared=shared_experts(c, "moe_num_shared_experts", width, bias=bias),
    )
    count = num_layers(c)
    if text:
        sparse = sparse_layers(c, lambda index: index > 0)
    else:
        first, interval = c.count("moe_layer_start_index"), c.size("moe_layer_interval", 1)
        last = c.get("moe_layer_end_index")
        last = count - 1 if not isinstance(last, int) or last == -1 else last
        sparse = [(index + 1) % interval == 0 and first <= index <= last for index in range(count)]
    mtp = c.count("num_nextn_predict_layers")
    layers = arrange(mixer, sparse, ffn, gated(c, bias=bias))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim, interleaved=True),
        head=Head(bias=bias and c.model_type == "ernie4_5_moe"),
        next_token_prediction=NextTokenPrediction(count=mtp, layer=layers[0][0]) if mtp else None,
    )


@family("hunyuan_v1_moe")
def hunyuan_moe(c: Config) -> ModelSpec:
    """Hunyuan-A13B: a shared feed-forward beside each layer's experts, qk-norm after the rotation."""
    bias = c.flag("attention_bias")
    c.require("use_qk_norm", True)
    no_effect(
        c,
        """
        attention_head_dim norm_type cla_share_factor group_limited_greedy n_group topk_group
        routed_scaling_factor norm_topk_prob moe_drop_tokens moe_random_routing_dropped_token
        use_rotary_pos_emb mask_init_id org_vocab_size pool_type class_num position_embedding_xdrope
        dense_list num_media_embeds text_start_id text_end_id image_token_length eod_id
        """,
    )
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(after_rope=True))
    width = c.size("intermediate_size")
    c.require("use_cla", False)
    c.require("use_mixed_mlp_moe", True)
    c.require("moe_layer_num_skipped", 0)
    for key, usual in (
        ("moe_intermediate_size", width),
        ("expert_hidden_dim", width),
        ("num_shared_expert", 1),
    ):
        given = c.get(key)
        if given is not None and set(given if isinstance(given, list) else [given]) != {usual}:
            c.doubt(f"{key} other than {usual} is not understood")
    top_k, experts = c.get("moe_topk"), c.get("num_experts")
    count = min(c.size("num_hidden_layers"), 10_001)
    layers = []
    for index in range(count):
        chosen = top_k[index] if isinstance(top_k, list) and index < len(top_k) else top_k
        number = experts[index] if isinstance(experts, list) and index < len(experts) else experts
        if type(number) is not int or type(chosen) is not int or number < 1 or chosen < 1:
            raise c.error("num_experts", "and moe_topk must be whole numbers or lists of one a layer")
        shared = SharedExperts(intermediate_size=width)
        ffn = MoE(
            num_experts=number,
            num_experts_per_tok=chosen,
            intermediate_size=width,
            activation=activation(c),
            router=Router(normalize=True),
            shared=shared,
        )
        layers.append(("moe", block(mixer, ffn)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("minimax_m2")
def minimax_m2(c: Config) -> ModelSpec:
    """MiniMax-M2: qk-norm over the full width, sigmoid router with a stored correction."""
    c.require("use_qk_norm", True)
    c.require("qk_norm_type", "per_layer")
    no_effect(
        c,
        """
        scoring_func mtp_transformer_layers use_mtp shared_moe_mode mlp_intermediate_size
        layernorm_full_attention_beta layernorm_linear_attention_beta layernorm_mlp_beta
        """,
    )
    c.require("use_routing_bias", True)
    c.require("shared_intermediate_size", 0)
    c.require("moe_intermediate_size", c.size("intermediate_size"))
    if any(kind != 1 for kind in c.entries("attn_type_list") or []):
        c.doubt("attn_type_list with other than full attention is not understood")
    mixer = attention(c, qk_norm=QKNorm(over="full"))
    ffn = moe(
        c,
        experts="num_local_experts",
        width="intermediate_size",
        router=Router(scores="sigmoid", correction="buffer", normalize=True),
    )
    mtp = c.count("num_mtp_modules")
    return decoder(
        c,
        block(mixer, ffn),
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim),
        next_token_prediction=NextTokenPrediction(count=mtp, layer="block") if mtp else None,
    )


@family("llama4_text")
def llama4(c: Config) -> ModelSpec:
    """Llama 4: a shared expert beside one routed, chunked attention in three layers of four, no positions in
    the fourth; layers without experts have another width."""
    bias = c.flag("attention_bias")
    count = min(c.size("num_hidden_layers"), 10_001)
    chunk = c.optional_size("attention_chunk_size")
    no_rope = c.entries("no_rope_layers")
    every = c.size("no_rope_layer_interval", 4)
    rotated = no_rope or [int((i + 1) % every != 0) for i in range(count)]
    if len(rotated) != count:
        raise c.error("no_rope_layers", f"must have {count} entries, one a layer, not {len(rotated)}")
    kinds = layer_types(c, ["chunked_attention" if turns else "full_attention" for turns in rotated])
    step = c.size("interleave_moe_layer_step", 1)
    chosen = c.entries("moe_layers")
    sparse = set(chosen) if chosen is not None else set(range(step - 1, count, step))
    qk_norm = QKNorm(norm="l2norm", weight=False, after_rope=True) if c.flag("use_qk_norm", True) else None
    c.ignore("for_llm_compressor")
    temperature = None
    growth, every = c.number("attn_scale", 0.1), c.size("floor_scale", 8192)
    if c.flag("attn_temperature_tuning", True):
        temperature = Temperature(scale=growth, every=every, offset=1)
    width = c.size("intermediate_size")
    experts = moe(
        c,
        experts="num_local_experts",
        width="intermediate_size",
        router=Router(scores="sigmoid", on_input=True),
        shared=SharedExperts(intermediate_size=width),
    )
    dense = Gated(intermediate_size=c.size("intermediate_size_mlp", width), activation=activation(c))
    layers = []
    for index, kind in enumerate(kinds):
        turns = bool(rotated[index])
        mixer = attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=qk_norm if turns else None,
            attention_chunk_size=chunk if kind == "chunked_attention" else None,
            temperature=None if turns else temperature,
            positions=None if turns else NoPositions(),
        )
        name = "chunked" if kind == "chunked_attention" else "global"
        is_moe = index in sparse
        layers.append((f"{name}_{'moe' if is_moe else 'dense'}", block(mixer, experts if is_moe else dense)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c), interleaved=True))
