"""Mixtures with ordinary attention in DeepSeek's manner: small experts, shared ones beside them, dense layers
first."""

from __future__ import annotations

import msgspec

from llmbench.spec.ffn import MoE, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.arrange import (
    after_first,
    arrange,
    local_layers,
    no_effect,
    num_layers,
    shared_experts,
    sparse_layers,
    vector,
)
from llmbench.spec.huggingface.families.dense import HEAD_NORM
from llmbench.spec.huggingface.parts import (
    activation,
    attention,
    decoder,
    deepseek_router,
    gated,
    head_dim_of,
    moe,
    norm,
    rope,
    states_rotation,
)
from llmbench.spec.mixer import Attention, Mixer
from llmbench.spec.model import Embedding, Head, ModelSpec, NextTokenPrediction, Norm
from llmbench.spec.position import NoPositions

SIGMOID = Router(scores="sigmoid", correction="buffer", normalize=True)


def mtp_of(count: int, layers: list[tuple[str, object]]) -> NextTokenPrediction | None:
    """Multi-token-prediction modules whose layer is like the model's last."""
    return NextTokenPrediction(count=count, layer=layers[-1][0]) if count else None


@family("glm4_moe", "glm4v_moe_text", "solar_open")
def glm4_moe(c: Config) -> ModelSpec:
    """GLM-4.5 (half of each head rotated) and Solar Open (no dense layers): biases on q, k and v only."""
    solar = c.model_type == "solar_open"
    if solar:
        c.ignore("first_k_dense_replace", "intermediate_size", "partial_rotary_factor", "use_qk_norm")
    mixer = attention(
        c,
        qkv_bias=c.flag("attention_bias"),
        qk_norm=HEAD_NORM if c.model_type == "glm4_moe" and c.flag("use_qk_norm") else None,
    )
    return deepseek_experts(
        c,
        mixer,
        positions_dim=mixer.head_dim,
        partial=1.0 if solar else 0.5,
        sparse=[True] * num_layers(c) if solar else None,
    )


@family("deepseek")
def deepseek_moe(c: Config) -> ModelSpec:
    """DeepSeekMoE-16B: fine-grained softmax experts and shared ones, the first layers dense."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    return deepseek_experts(c, mixer, positions_dim=mixer.head_dim, scores="softmax", correction=None)


def deepseek_experts(
    c: Config,
    mixer: Mixer,
    *,
    positions_dim: int,
    scores: str = "sigmoid",
    correction: str | None = "buffer",
    interleaved: bool = False,
    partial: float = 1.0,
    bias: bool = False,
    first: int = 0,
    sparse: list[bool] | None = None,
) -> ModelSpec:
    """DeepSeek's arrangement of layers: `first_k_dense_replace` dense ones, then experts (every
    `moe_layer_freq`-th), `n_shared_experts` of the same width beside them, multi-token prediction apart."""
    ffn = deepseek_ffn(c, scores=scores, correction=correction, bias=bias)
    flags = after_first(c, first) if sparse is None else sparse
    dense = None if all(flags) else gated(c, bias=bias)
    if dense is None:
        c.ignore("intermediate_size")
    layers = arrange(mixer, flags, ffn, dense)
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=positions_dim, interleaved=interleaved, partial=partial),
        next_token_prediction=mtp_of(c.count("num_nextn_predict_layers"), list(layers)),
    )


def deepseek_ffn(c: Config, *, scores: str = "sigmoid", correction: str | None = "buffer", bias: bool = False) -> MoE:
    """DeepSeek's experts; `scoring_func` and `topk_method` change no figure."""
    shared = shared_experts(c, "n_shared_experts", c.size("moe_intermediate_size"), bias=bias)
    c.ignore("topk_method", "scoring_func", "num_local_experts")
    if c.text("scoring_func") in ("softmax", "sigmoid"):
        scores = c.text("scoring_func")
    return moe(
        c,
        experts="n_routed_experts",
        router=deepseek_router(c, correction=correction, scores=scores),
        shared=shared,
    )


@family("dots1")
def dots1(c: Config) -> ModelSpec:
    """dots.llm1: Qwen3's attention, DeepSeek's experts, windows from layer `max_window_layers` on."""
    bias = c.flag("attention_bias")
    window, first = c.window(), c.count("max_window_layers")
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM}
    local = local_layers(c, lambda index: window is not None and index >= first)
    mixers = [
        ("local" if near else "", attention(c, sliding_window=window if near else None, **common)) for near in local
    ]
    sparse = after_first(c)
    c.ignore("intermediate_size")
    layers = arrange(mixers, sparse, deepseek_ffn(c), None if all(sparse) else gated(c, bias=False))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


@family("exaone_moe")
def exaone_moe(c: Config) -> ModelSpec:
    """K-EXAONE: EXAONE 4's attention (no positions in global layers), DeepSeek's experts, norms before
    each."""
    window = c.window()
    pattern = c.get("sliding_window_pattern")
    every = len(pattern) if isinstance(pattern, str) else pattern if isinstance(pattern, int) and window else 0
    last = pattern[-1:] if isinstance(pattern, str) else "G"
    if last not in ("G", "g"):
        c.doubt(f"sliding_window_pattern = {pattern!r} is not understood")
    local = local_layers(c, lambda index: every > 0 and (index + 1) % every != 0)
    # As in EXAONE 4: with a pattern, only local layers rotate; without one, all do.
    mixers = [
        ("local", attention(c, qk_norm=HEAD_NORM, sliding_window=window))
        if near
        else ("global", attention(c, qk_norm=HEAD_NORM, positions=NoPositions() if window else None))
        for near in local
    ]
    width = c.size("moe_intermediate_size")
    ffn = moe(c, router=deepseek_router(c), shared=shared_experts(c, "num_shared_experts", width))
    c.ignore("scoring_func", "topk_method", "first_last_k_dense_replace")
    flags, first = c.entries("is_moe_layer", num_layers(c)), c.count("first_k_dense_replace")
    sparse = sparse_layers(c, lambda index: bool(flags[index]) if flags else index >= first)
    layers = arrange(mixers, sparse, ffn, gated(c, bias=False))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim_of(c)),
        next_token_prediction=mtp_of(c.count("num_nextn_predict_layers"), list(layers)),
    )


@family("hy_v3")
def hy_v3(c: Config) -> ModelSpec:
    """Hunyuan 3: a norm per head on queries and keys, one dense layer, sigmoid experts."""
    bias, mlp_bias = c.flag("attention_bias"), c.flag("mlp_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=HEAD_NORM)
    width = c.size("moe_intermediate_size")
    shared = shared_experts(c, "num_shared_experts", width, bias=mlp_bias)
    if shared is None:
        c.doubt("num_shared_experts = 0: the class makes one of the dense width")
    c.ignore("enable_moe_fp32_combine")
    router = msgspec.structs.replace(SIGMOID, scale=c.number("router_scaling_factor", 1.0))
    ffn = moe(c, router=router, shared=shared)
    sparse = after_first(c, 1)
    return decoder(
        c,
        arrange(mixer, sparse, ffn, gated(c)),
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim),
    )


@family("kolibri1")
def kolibri(c: Config) -> ModelSpec:
    """Kolibri 1: four local layers to one global without positions, four norms a layer, experts in all."""
    window = c.window()
    local = local_layers(c, lambda index: (index + 1) % 5 != 0)
    mixers = [
        ("local", attention(c, qk_norm=HEAD_NORM, sliding_window=window))
        if near
        else ("global", attention(c, qk_norm=HEAD_NORM, positions=NoPositions() if window else None))
        for near in local
    ]
    shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"))
    router = Router(scores="sigmoid_topk", correction="buffer", normalize=c.flag("norm_topk_prob"))
    layers = arrange(mixers, [True] * num_layers(c), moe(c, router=router, shared=shared), None, "sandwich")
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


@family("laguna")
def laguna(c: Config) -> ModelSpec:
    """Laguna: each layer its own number of query heads, a gate a head (or a channel) under a softplus."""
    bias, gating = c.flag("attention_bias"), c.get("gating")
    headwise = gating is True or gating == "per-head"
    count = num_layers(c)
    if bias and not headwise:
        c.doubt("attention_bias: the gate's bias is counted too")
    heads = c.entries("num_attention_heads_per_layer", count) or [c.size("num_attention_heads")] * count
    local = local_layers(c, lambda index: False)
    window = c.window()
    states_rotation(c)
    positions, near_positions = (
        rope(c, head_dim=head_dim_of(c), layer_type=kind) for kind in ("full_attention", "sliding_attention")
    )
    mixers = []
    for own, near in zip(heads, local, strict=True):
        if type(own) is not int or own < 1:
            raise c.error("num_attention_heads_per_layer", "must be whole numbers of at least one")
        mixer = attention(
            c,
            num_attention_heads=own,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=HEAD_NORM,
            output_gate="headwise" if headwise else "elementwise",
            gate_activation="softplus",
            sliding_window=window if near else None,
            positions=near_positions if near else None,
        )
        mixers.append(("local" if near else "global", mixer))
    shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"))
    c.ignore("num_attention_heads", "swa_attention_sink_enabled")
    if c.number("moe_router_logit_softcapping", 0.0) > 0:
        c.inexact("a cap on the router's logits")
    router = Router(
        scores="sigmoid",
        correction="parameter",
        normalize=True,
        scale=c.number("moe_routed_scaling_factor", 1.0),
        on_input=c.flag("moe_apply_router_weight_on_input"),
    )
    ffn = moe(c, router=router, shared=shared)
    sparse = sparse_layers(c, lambda index: index > 0)
    return decoder(
        c,
        arrange(mixers, sparse, ffn, gated(c, bias=False)),
        norm=norm(c),
        positions=positions,
    )


@family("afmoe")
def afmoe(c: Config) -> ModelSpec:
    """Arcee's Trinity: gated attention, three local layers to one global without positions, four norms a
    layer."""
    bias = c.flag("attention_bias")
    if bias:
        c.doubt("attention_bias: the gate's bias is counted too")
    every, window = c.size("global_attn_every_n_layers", 4), c.window()
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM, "output_gate": "elementwise"}
    mixers = [
        ("local", attention(c, sliding_window=window, **common))
        if near
        else ("global", attention(c, positions=NoPositions(), **common))
        for near in local_layers(c, lambda index: (index + 1) % every != 0)
    ]
    width = c.size("moe_intermediate_size")
    router = Router(scores="sigmoid", correction="parameter", normalize=True, scale=c.number("route_scale", 1.0))
    ffn = moe(c, router=router, shared=shared_experts(c, "num_shared_experts", width))
    no_effect(
        c,
        """
        route_norm score_func n_group topk_group num_expert_groups num_limited_groups
        use_grouped_mm
        """,
    )
    first = c.count("num_dense_layers")
    layers = arrange(mixers, [i >= first for i in range(num_layers(c))], ffn, gated(c, bias=False), "sandwich")
    scale = c.size("hidden_size") ** 0.5 if c.flag("mup_enabled") else 1.0
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim_of(c)),
        embedding=Embedding(scale=scale),
    )


@family("beam")
def beam(c: Config) -> ModelSpec:
    """Beam: a gate with a bias a head, five local layers to one global without positions, four norms a
    layer."""
    bias = c.flag("attention_bias")
    if bias:
        c.doubt("attention_bias: the gate's bias is counted too")
    window, count = c.window(), num_layers(c)
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM, "output_gate": "elementwise"}
    mixers = [
        ("local", attention(c, sliding_window=window, **common))
        if near
        else ("global", attention(c, positions=NoPositions(), **common))
        for near in local_layers(c, lambda index: (index + 1) % 6 != 0 and index < count - 1)
    ]
    ffn = moe(c, router=deepseek_router(c))
    gate_bias = vector("attention.gate_bias", "attention", c.size("num_attention_heads"))
    sparse = sparse_layers(c, lambda index: index >= 3)
    layers = arrange(mixers, sparse, ffn, gated(c, bias=False), "sandwich", extra=(gate_bias,))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


@family("flint")
def flint(c: Config) -> ModelSpec:
    """Flint: sinks, most layers local, no positions in global ones, a shared expert without a gate."""
    bias, count = c.flag("attention_bias"), num_layers(c)
    window = c.window()
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM, "sinks": True}
    local = local_layers(c, lambda index: index >= 2 and index % 4 != 1 and index < count - 1)
    mixers: list[tuple[str, Attention]] = [
        ("local", attention(c, sliding_window=window, **common))
        if near
        else ("global", attention(c, positions=NoPositions(), **common))
        for near in local
    ]
    shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"))
    ffn = moe(c, router=Router(scores="sigmoid", normalize=c.flag("norm_topk_prob", True)), shared=shared)
    step, given = c.count("decoder_sparse_step", 1), c.entries("mlp_only_layers")
    only_dense = {0, 1} if given is None else set(given)
    sparse = [step > 0 and (index + 1) % step == 0 and index not in only_dense for index in range(count)]
    return decoder(
        c,
        arrange(mixers, sparse, ffn, gated(c, bias=False)),
        norm=norm(c),
        positions=rope(c, head_dim=head_dim_of(c)),
    )


@family("cohere2_moe")
def cohere2_moe(c: Config) -> ModelSpec:
    """Cohere's mixture: parallel blocks, three local layers to one global without positions, dense layers
    first."""
    bias = c.flag("attention_bias")
    window = c.window()
    first = c.count("first_k_dense_replace")
    before, every = c.size("prefix_dense_sliding_window_pattern", 1), c.size("sliding_window_pattern", 4)

    def near(index: int) -> bool:
        return (index + 1) % before != 0 if index < first else (index - first + 1) % every != 0

    local, sparse = local_layers(c, near), sparse_layers(c, lambda index: index >= first)
    common = {"qkv_bias": bias, "output_bias": bias}
    mixers = []
    for is_local, has_experts in zip(local, sparse, strict=True):
        rotates = is_local or (not has_experts and before == 1)
        mixer = attention(
            c,
            sliding_window=window if is_local else None,
            positions=None if rotates else NoPositions(),
            **common,
        )
        mixers.append(("local" if is_local else "global", mixer))
    width = c.size("intermediate_size")
    shared = shared_experts(c, "num_shared_experts", width)
    if shared is not None:
        c.require("shared_expert_combination_strategy", "average", "sum")
        averaged = c.text("shared_expert_combination_strategy", "average") == "average"
        shared = SharedExperts(intermediate_size=shared.intermediate_size, averaged=averaged)
    ffn = MoE(
        num_experts=c.size("num_experts"),
        num_experts_per_tok=c.size("num_experts_per_tok"),
        intermediate_size=width,
        activation=activation(c),
        router=Router(scores="softmax_topk")
        if c.text("expert_selection_fn", "softmax") == "softmax"
        else Router(scores="sigmoid", normalize=c.flag("norm_topk_prob")),
        shared=shared,
    )
    dense = gated(c, bias=False, width=c.optional_size("prefix_dense_intermediate_size") or width)
    c.ignore("shared_expert_combination_strategy", "norm_topk_prob", "_sliding_window_pattern")
    if c.table("rope_scaling") and not c.table("rope_parameters"):
        c.inexact("its class does not read rope_scaling")
    root = c.get("rms_norm_eps") is not None
    kind: Norm = norm(c, "rmsnorm" if root else "layernorm", bias=False)
    layers = arrange(mixers, sparse, ffn, dense, "parallel")
    positions = rope(c, head_dim=head_dim_of(c), interleaved=True)
    return decoder(c, layers, norm=kind, positions=positions, head=Head(scale=c.number("logit_scale", 0.0625)))
