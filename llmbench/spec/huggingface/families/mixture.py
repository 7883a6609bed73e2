"""Mixtures of experts with ordinary attention."""

from __future__ import annotations

from typing import Any

from llmbench.spec.ffn import Gated, MoE, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.dense import HEAD_NORM, granite_model
from llmbench.spec.huggingface.parts import (
    activation,
    attention,
    block,
    decoder,
    deepseek_router,
    gated,
    head_dim_of,
    layer_types,
    moe,
    norm,
    rope,
)
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Head, Layer, ModelSpec, NextTokenPrediction
from llmbench.spec.position import NoPositions

TOPK_SOFTMAX = Router(scores="softmax_topk")


@family("mixtral")
def mixtral(c: Config) -> ModelSpec:
    """Mixtral: Mistral with every feed-forward a choice of two of eight."""
    mixer = attention(c, sliding_window=c.optional_size("sliding_window"))
    ffn = moe(c, experts="num_local_experts", width="intermediate_size", router=TOPK_SOFTMAX)
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("qwen2_moe", "qwen3_moe")
def qwen_moe(c: Config) -> ModelSpec:
    """Qwen1.5/2-MoE (with a gated shared expert) and Qwen3-MoE; `decoder_sparse_step` and `mlp_only_layers` say which
    layers have experts."""
    old = c.model_type == "qwen2_moe"
    bias = c.flag("qkv_bias", True) if old else c.flag("attention_bias")
    c.ignore("sliding_window", "intermediate_size")
    c.require("use_qk_norm", not old)
    window = c.optional_size("sliding_window") if c.flag("use_sliding_window") else None
    first = c.count("max_window_layers")
    count = min(c.size("num_hidden_layers"), 10_001)
    step, only_dense = c.count("decoder_sparse_step", 1), set(c.entries("mlp_only_layers") or [])
    shared = None
    if old:
        shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"), gate=True)
    experts = moe(c, router=Router(normalize=c.flag("norm_topk_prob")), shared=shared)
    derived = ["sliding_attention" if window and old and i >= first else "full_attention" for i in range(count)]
    kinds = layer_types(c, derived)
    layers = []
    for index, kind in enumerate(kinds):
        own_window = window if kind == "sliding_attention" or not old else None
        mixer = attention(
            c, qkv_bias=bias, output_bias=bias and not old, qk_norm=None if old else HEAD_NORM, sliding_window=own_window
        )
        sparse = index not in only_dense and c.size("num_experts") > 0 and step > 0 and (index + 1) % step == 0
        layers.append(("moe", block(mixer, experts)) if sparse else ("dense", block(mixer, gated(c, bias=False))))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


@family("olmoe")
def olmoe(c: Config) -> ModelSpec:
    """OLMoE: qk-norm over the full width, 8 of 64 small experts."""
    bias = c.flag("attention_bias")
    c.ignore("clip_qkv")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(over="full"))
    ffn = moe(c, width="intermediate_size", router=Router(normalize=c.flag("norm_topk_prob")))
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("phimoe")
def phimoe(c: Config) -> ModelSpec:
    """Phi-3.5-MoE: LayerNorms, biases on attention and head, 2 of 16 experts."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, sliding_window=c.optional_size("sliding_window"))
    ffn = moe(c, experts="num_local_experts", width="intermediate_size", router=TOPK_SOFTMAX)
    return decoder(
        c,
        block(mixer, ffn),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim),
        head=Head(bias=c.flag("lm_head_bias")),
    )


@family("gpt_oss")
def gpt_oss(c: Config) -> ModelSpec:
    """gpt-oss: sinks, biases on attention, router and experts, every other layer local."""
    bias = c.flag("attention_bias", True)
    window = c.optional_size("sliding_window")
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = layer_types(c, ["sliding_attention" if (i + 1) % 2 else "full_attention" for i in range(count)])
    c.ignore("experts_per_token", "swiglu_limit", "initial_context_length")
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


@family("granitemoe")
def granitemoe(c: Config) -> ModelSpec:
    """Granite 3 with experts."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, scale=c.optional_number("attention_multiplier"))
    ffn = moe(c, experts="num_local_experts", width="intermediate_size", router=TOPK_SOFTMAX)
    layer = block(mixer, ffn, residual_scale=c.number("residual_multiplier", 1.0))
    return granite_model(c, layer, mixer.head_dim)


@family("dbrx")
def dbrx(c: Config) -> ModelSpec:
    """DBRX: 4 of 16 experts, LayerNorms without bias, its sizes in two nested tables."""
    inner, ffn = c.sub("attn_config"), c.sub("ffn_config")
    heads, hidden = c.size("num_attention_heads"), c.size("hidden_size")
    mixer = attention(c, num_key_value_heads=inner.size("kv_n_heads", heads), head_dim=hidden // heads)
    inner.ignore("clip_qkv", "rope_theta", "attn_pdrop")
    act = ffn.table("ffn_act_fn").get("name", "silu")
    ffn.ignore("moe_normalize_expert_weights", "uniform_expert_assignment", "hidden_size")
    experts = MoE(
        num_experts=ffn.size("moe_num_experts"),
        num_experts_per_tok=ffn.size("moe_top_k"),
        intermediate_size=ffn.size("ffn_hidden_size"),
        activation="silu" if act == "silu" else "gelu",
        router=Router(normalize=True),
    )
    inner.doubt_unread()
    ffn.doubt_unread()
    theta = inner.number("rope_theta", 10000.0)
    positions = rope(c, head_dim=mixer.head_dim)
    return decoder(
        c, block(mixer, experts), norm=norm(c, "layernorm", bias=False), positions=type(positions)(theta=theta)
    )


@family("glm4_moe")
def glm4_moe(c: Config) -> ModelSpec:
    """GLM-4.5: DeepSeek's experts behind grouped attention with q/k/v biases; a few dense layers first."""
    mixer = attention(
        c, qkv_bias=c.flag("attention_bias"), qk_norm=HEAD_NORM if c.flag("use_qk_norm") else None
    )
    return deepseek_experts(c, mixer, norm_kind="rmsnorm", head_dim=mixer.head_dim)


@family("deepseek")
def deepseek_moe(c: Config) -> ModelSpec:
    """DeepSeekMoE-16B: fine-grained softmax experts and shared ones; `moe_layer_freq` and the first layers dense."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    return deepseek_experts(c, mixer, norm_kind="rmsnorm", head_dim=mixer.head_dim, scores="softmax", correction=None)


def deepseek_experts(
    c: Config,
    mixer: Any,
    *,
    norm_kind: str,
    head_dim: int,
    scores: str = "sigmoid",
    correction: str | None = "buffer",
    interleaved: bool = False,
    bias: bool = False,
) -> ModelSpec:
    """DeepSeek's arrangement of layers: `first_k_dense_replace` dense ones, then experts (every `moe_layer_freq`-th),
    `n_shared_experts` of the same width beside them, and multi-token prediction apart."""
    shared_count = c.count("n_shared_experts")
    width = c.size("moe_intermediate_size")
    shared = SharedExperts(intermediate_size=shared_count * width, bias=bias) if shared_count else None
    c.ignore("topk_method", "scoring_func", "moe_layer_freq_note", "num_local_experts")
    if c.text("scoring_func") in ("softmax", "sigmoid"):
        scores = c.text("scoring_func")
    ffn = moe(
        c, experts="n_routed_experts", router=deepseek_router(c, correction=correction, scores=scores), shared=shared
    )
    count, first = min(c.size("num_hidden_layers"), 10_001), c.count("first_k_dense_replace")
    frequency = c.size("moe_layer_freq", 1)
    kinds = c.entries("mlp_layer_types", count)
    layers: list[tuple[str, Layer]] = []
    for index in range(count):
        sparse = index >= first and index % frequency == 0
        if kinds is not None:
            sparse = kinds[index] == "sparse"
        layers.append(("moe", block(mixer, ffn)) if sparse else ("dense", block(mixer, gated(c, bias=bias))))
    mtp = c.count("num_nextn_predict_layers")
    last = "moe" if any(name == "moe" for name, _ in layers) else "dense"
    return decoder(
        c,
        layers,
        norm=norm(c, norm_kind),
        positions=rope(c, head_dim=head_dim, interleaved=interleaved),
        next_token_prediction=NextTokenPrediction(count=mtp, layer=last) if mtp else None,
    )


@family("ernie4_5_moe")
def ernie_moe(c: Config) -> ModelSpec:
    """ERNIE 4.5: the router's correction is a parameter; experts from `moe_layer_start_index` to `..end_index`."""
    bias = c.flag("use_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    width, shared_count = c.size("moe_intermediate_size"), c.count("moe_num_shared_experts")
    shared = SharedExperts(intermediate_size=shared_count * width, bias=bias) if shared_count else None
    c.require("moe_use_aux_free", True)
    c.ignore("moe_capacity", "moe_gate", "moe_norm_min", "moe_group", "moe_multimodal_paths", "num_nextn_predict_layers")
    ffn = MoE(
        num_experts=c.size("moe_num_experts"),
        num_experts_per_tok=c.size("moe_k"),
        intermediate_size=width,
        activation=activation(c),
        router=Router(correction="parameter", normalize=True),
        shared=shared,
    )
    count = min(c.size("num_hidden_layers"), 10_001)
    first, interval = c.count("moe_layer_start_index"), c.size("moe_layer_interval", 1)
    last = c.get("moe_layer_end_index")
    last = count - 1 if not isinstance(last, int) or last == -1 else last
    layers = [
        ("moe", block(mixer, ffn))
        if (index + 1) % interval == 0 and first <= index <= last
        else ("dense", block(mixer, gated(c, bias=bias)))
        for index in range(count)
    ]
    mtp = c.count("num_nextn_predict_layers")
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim, interleaved=True),
        head=Head(bias=bias),
        next_token_prediction=NextTokenPrediction(count=mtp, layer="dense") if mtp else None,
    )


@family("hunyuan_v1_moe")
def hunyuan_moe(c: Config) -> ModelSpec:
    """Hunyuan-A13B: a shared feed-forward beside each layer's experts, qk-norm after the rotation."""
    bias = c.flag("attention_bias")
    c.require("use_qk_norm", True)
    c.ignore("attention_head_dim", "norm_type", "use_mixed_mlp_moe", "moe_intermediate_size", "num_shared_expert", "use_cla",
             "cla_share_factor", "moe_layer_num_skipped", "group_limited_greedy", "n_group", "topk_group", "routed_scaling_factor",
             "norm_topk_prob", "moe_drop_tokens", "moe_random_routing_dropped_token", "use_rotary_pos_emb", "mask_init_id")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(after_rope=True))
    width = c.size("intermediate_size")
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
            num_experts=number, num_experts_per_tok=chosen, intermediate_size=width, activation=activation(c), shared=shared
        )
        layers.append(("moe", block(mixer, ffn)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("minimax_m2")
def minimax_m2(c: Config) -> ModelSpec:
    """MiniMax-M2: qk-norm over the full width, sigmoid router with a stored correction."""
    c.require("use_qk_norm", True)
    c.require("qk_norm_type", "per_layer")
    c.ignore("use_routing_bias", "scoring_func", "mtp_transformer_layers", "use_mtp", "shared_intermediate_size", "attn_type_list")
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


@family("mimo_v2_flash")
def mimo(c: Config) -> ModelSpec:
    """MiMo-V2-Flash: keys 192 wide and values 128, five local layers with sinks to one global, other head counts each."""
    count = min(c.size("num_hidden_layers"), 10_001)
    bias = c.flag("attention_bias")
    pattern = c.entries("hybrid_layer_pattern", count) or [0] * count
    kinds = layer_types(c, ["sliding_attention" if local else "full_attention" for local in pattern])
    frequency = c.get("moe_layer_freq")
    sparse = frequency if isinstance(frequency, list) else [int(bool(frequency))] * count
    if isinstance(frequency, list) and len(frequency) != count:
        raise c.error("moe_layer_freq", f"must have {count} entries")
    mlp_kinds = c.entries("mlp_layer_types", count)
    if mlp_kinds is not None:
        sparse = [int(kind == "sparse") for kind in mlp_kinds]
    window = c.optional_size("sliding_window")
    c.ignore("sliding_window_size", "attention_chunk_size", "swa_rope_theta", "attention_value_scale", "topk_method", "scoring_func")
    full = attention(
        c, v_head_dim=c.optional_size("v_head_dim"), qkv_bias=bias, sinks=c.flag("add_full_attention_sink_bias")
    )
    local = attention(
        c,
        num_attention_heads=c.size("swa_num_attention_heads", full.num_attention_heads),
        num_key_value_heads=c.size("swa_num_key_value_heads", full.num_key_value_heads),
        head_dim=c.size("swa_head_dim", full.head_dim),
        v_head_dim=c.optional_size("swa_v_head_dim") or full.v_head_dim,
        qkv_bias=bias,
        sliding_window=window,
        sinks=c.flag("add_swa_attention_sink_bias"),
    )
    shared_count = c.count("n_shared_experts")
    shared = SharedExperts(intermediate_size=shared_count * c.size("moe_intermediate_size")) if shared_count else None
    ffn = moe(c, experts="n_routed_experts", router=deepseek_router(c), shared=shared)
    dense = gated(c, bias=False)
    layers = []
    for kind, experts in zip(kinds, sparse, strict=True):
        mixer, name = (local, "local") if kind == "sliding_attention" else (full, "global")
        layers.append((f"{name}_moe" if experts else f"{name}_dense", block(mixer, ffn if experts else dense)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=full.head_dim))


@family("llama4_text")
def llama4(c: Config) -> ModelSpec:
    """Llama 4: a shared expert beside one routed, chunked attention in three layers of four, no positions in the
    fourth; layers without experts have another width."""
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
    c.ignore("for_llm_compressor", "attn_scale", "floor_scale", "attn_temperature_tuning")
    width = c.size("intermediate_size")
    experts = moe(
        c,
        experts="num_local_experts",
        width="intermediate_size",
        router=Router(scores="sigmoid"),
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
            positions=None if turns else NoPositions(),
        )
        name = "chunked" if kind == "chunked_attention" else "global"
        is_moe = index in sparse
        layers.append((f"{name}_{'moe' if is_moe else 'dense'}", block(mixer, experts if is_moe else dense)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c), interleaved=True))
