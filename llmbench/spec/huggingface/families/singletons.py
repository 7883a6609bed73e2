"""Importers for makers with a single model here, sorted by the name of the model."""

from __future__ import annotations

import msgspec

from llmbench.errors import UnsupportedError
from llmbench.spec.ffn import Dense, Gated, MoE, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    MOST_LAYERS,
    TOPK_SOFTMAX,
    activation,
    attention,
    block,
    decoder,
    deepseek_router,
    dense,
    expect_stated_rotation,
    gated,
    head_dim_of,
    latent_attention,
    layer_size,
    layer_types,
    matrix,
    mixture_layers,
    moe,
    norm,
    num_layers,
    rope,
    shared_experts,
    sparse_layers,
    vector,
    windowed_layers,
)
from llmbench.spec.huggingface.families.deepseek import deepseek_model
from llmbench.spec.huggingface.families.ibm_granite import granite_model
from llmbench.spec.huggingface.families.llama import llama, llama_from_hub
from llmbench.spec.mixer import RWKV, Attention, QKNorm
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec, Placement
from llmbench.spec.position import Alibi, NoPositions


@family("apertus")
def apertus(c: Config) -> ModelSpec:
    """Apertus has norms on q and k. Its activation is xIELU, with two trained and two stored numbers per layer."""
    bias = c.flag("attention_bias")
    c.require("qk_norm", True)
    c.require("post_norm", False)
    c.require("mlp_bias", False)
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=HEAD_NORM)
    ffn = dense(c, bias=False, default="xielu")
    extra: tuple[ExtraWeight, ...] = ()
    if ffn.activation == "xielu":
        ffn = Dense(intermediate_size=ffn.intermediate_size, activation="xielu", activation_parameters=2)
        extra = (ExtraWeight(name="ffn.act.constants", shape=(2,), role="buffer"),)
    return decoder(c, block(mixer, ffn, extra=extra), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("arctic")
def arctic(c: Config) -> ModelSpec:
    """Snowflake Arctic has 2 of 128 experts, and a dense feed-forward parallel to the experts.

    The dense feed-forward has its own norm. The width between its matrices is hidden_size.
    """
    hidden, every = c.size("hidden_size"), c.size("moe_layer_frequency", 1)
    mixer = attention(c, sliding_window=c.window())
    width, act = c.size("intermediate_size"), activation(c)
    residual = c.flag("use_residual", True) and c.flag("parallel_attn_mlp_res", True)
    if not residual:
        c.doubt("use_residual = False or parallel_attn_mlp_res = False is not understood; only True is supported")
    ffn = MoE(
        num_experts=c.size("num_local_experts"),
        num_experts_per_tok=c.size("num_experts_per_tok"),
        intermediate_size=width,
        activation=act,
        router=TOPK_SOFTMAX,
        beside=Gated(intermediate_size=hidden, activation=act) if residual else None,
    )
    c.ignore(
        """
        moe_eval_capacity_factor moe_train_capacity_factor moe_min_capacity moe_token_dropping
        enable_expert_tensor_parallelism enc_index num_experts_per_token max_sequence_length
        """,
    )
    sparse = [(index + 1) % every == 0 for index in range(num_layers(c))]
    own_norm = (vector("ffn.residual_norm", "norms", hidden),) if residual else ()
    layers = mixture_layers(mixer, sparse, ffn, Gated(intermediate_size=width, activation=act), sparse_extra=own_norm)
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("aria_text", "aria_moe_lm")
def aria(c: Config) -> ModelSpec:
    """Aria is Llama with routed and shared experts. Only the shared experts can have biases."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    width = c.size("intermediate_size")
    ffn = MoE(
        num_experts=c.size("moe_num_experts"),
        num_experts_per_tok=c.size("moe_topk"),
        intermediate_size=width,
        activation=activation(c),
        router=TOPK_SOFTMAX,
        shared=shared_experts(c, "moe_num_shared_experts", width, bias=c.flag("mlp_bias")),
    )
    if ffn.activation != "silu":
        c.unbuildable(f"hidden_act = `{ffn.activation}`: the routed experts of Aria always use SiLU")
    c.ignore("moe_intermediate_size", "moe_z_loss_coeff", "moe_aux_loss_coeff")
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("baichuan")
def baichuan(c: Config) -> ModelSpec:
    """Baichuan 1 and 2 have Llama's architecture with multi-head attention. The 13B models have ALiBi instead of
    RoPE."""
    mixer = attention(c, num_key_value_heads=c.size("num_attention_heads"))
    positions = Alibi() if c.size("hidden_size") == 5120 else rope(c, head_dim=mixer.head_dim)
    if c.size("vocab_size") == 125696:
        c.unbuildable("vocab_size = 125696 means Baichuan 2: its head normalises each row of its matrix to length 1")
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=positions)


@family("beam")
def beam(c: Config) -> ModelSpec:
    """Beam has attention with an output gate and a gate bias per head. It has four norms per layer.

    Every sixth layer has full attention without position encoding. The other layers have RoPE and a sliding window.
    """
    bias = c.flag("attention_bias")
    if bias:
        c.doubt(
            "attention_bias = True: llmbench counts an output-gate bias per channel, but the model has one per head"
        )
    window, count = c.window(), num_layers(c)
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM, "output_gate": "elementwise"}
    mixers = [
        ("local", attention(c, sliding_window=window, **common))
        if windowed
        else ("global", attention(c, positions=NoPositions(), **common))
        for windowed in windowed_layers(c, lambda index: (index + 1) % 6 != 0 and index < count - 1)
    ]
    ffn = moe(c, router=deepseek_router(c))
    gate_bias = vector("attention.gate_bias", "attention", c.size("num_attention_heads"))
    sparse = sparse_layers(c, lambda index: index >= 3)
    layers = mixture_layers(mixers, sparse, ffn, gated(c, bias=False), "sandwich", extra=(gate_bias,))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


@family("doge")
def doge(c: Config) -> ModelSpec:
    """Doge has norms on q and k, and a trained scale on each residual sum. Its attention mask is computed from the
    values."""
    if c.flag("is_moe"):
        raise UnsupportedError("config is_moe = true: Doge's cross-domain experts are not supported")
    bias = c.flag("attention_bias")
    c.ignore("keep_window_size", "num_experts", "num_experts_per_tok", "norm_topk_prob", "expert_retrieval_size")
    mixer = attention(
        c,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=HEAD_NORM,
        sliding_window=c.window(),
    )
    kv_heads, hidden = mixer.num_key_value_heads, c.size("hidden_size")
    extra = [
        ExtraWeight(
            name="attention.dt_proj",
            shape=(kv_heads, kv_heads * mixer.head_dim),
            role="matmul",
            component="attention_extra",
        ),
        ExtraWeight(name="attention.A", shape=(kv_heads,), role="vector", component="attention_extra"),
        ExtraWeight(name="mixer_residual.scale", shape=(hidden,), role="vector"),
        ExtraWeight(name="ffn_residual.scale", shape=(hidden,), role="vector"),
    ]
    if bias:
        extra.append(
            ExtraWeight(name="attention.dt_bias", shape=(kv_heads,), role="vector", component="attention_extra")
        )
    layer = block(mixer, gated(c), extra=tuple(extra))
    return decoder(c, layer, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("flint")
def flint(c: Config) -> ModelSpec:
    """Flint has attention sinks, and a shared expert without a gate. Most layers have a sliding window and RoPE.

    The other layers have full attention without position encoding.
    """
    bias, count = c.flag("attention_bias"), num_layers(c)
    window = c.window()
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM, "sinks": True}
    local = windowed_layers(c, lambda index: index >= 2 and index % 4 != 1 and index < count - 1)
    mixers: list[tuple[str, Attention]] = [
        ("local", attention(c, sliding_window=window, **common))
        if windowed
        else ("global", attention(c, positions=NoPositions(), **common))
        for windowed in local
    ]
    shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"))
    ffn = moe(c, router=Router(scores="sigmoid", normalize=c.flag("norm_topk_prob", True)), shared=shared)
    step, listed = c.count("decoder_sparse_step", 1), c.entries("mlp_only_layers")
    only_dense = {0, 1} if listed is None else set(listed)
    sparse = [step > 0 and (index + 1) % step == 0 and index not in only_dense for index in range(count)]
    return decoder(
        c,
        mixture_layers(mixers, sparse, ffn, gated(c, bias=False)),
        norm=norm(c),
        positions=rope(c, head_dim=head_dim_of(c)),
    )


@family("grok-1")
def grok1(c: Config) -> ModelSpec:
    """Grok-1 has 2 of 8 experts, norms before and after the sublayers, a soft cap on attention scores, and scaled
    logits."""
    limit = c.optional_number("max_attn_value")
    mixer = attention(c, logit_soft_cap=limit, scale=c.optional_number("attn_output_multiplier"))
    ffn = moe(c, width="intermediate_size", activation="gelu")
    c.ignore("hidden_act")
    return decoder(
        c,
        block(mixer, ffn, "sandwich"),
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim),
        embedding=Embedding(scale=c.number("embedding_multiplier_scale", 1.0)),
        head=Head(scale=c.number("output_multiplier_scale", 1.0)),
        tie_word_embeddings=c.flag("tie_word_embeddings", True),
    )


@family("helium")
def helium(c: Config) -> ModelSpec:
    """Helium has Llama's architecture. `attention_bias` gives biases to q, k and v only."""
    mixer = attention(c, qkv_bias=c.flag("attention_bias"))
    if mixer.num_attention_heads * mixer.head_dim != c.size("hidden_size"):
        c.doubt("Helium's output projection expects that num_attention_heads × head_dim equals hidden_size")
    positions = rope(c, head_dim=mixer.head_dim, interleaved=True)
    return decoder(c, block(mixer, gated(c)), norm=norm(c), positions=positions)


@family("hyperclovax")
def hyperclovax(c: Config) -> ModelSpec:
    """HyperCLOVA X has Granite's constant factors. If `use_post_norm` is true, norms stand before and after each
    sublayer."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, scale=c.optional_number("attention_multiplier"))
    c.ignore("end_token_id")
    placement: Placement = "sandwich" if c.flag("use_post_norm", True) else "pre"
    layer = block(mixer, gated(c), placement, residual_scale=c.number("residual_multiplier", 1.0))
    # Granite divides the logits by logits_scaling. HyperCLOVA X multiplies the logits by logits_scaling.
    spec = granite_model(c, layer, mixer.head_dim)
    return msgspec.structs.replace(spec, head=Head(scale=c.number("logits_scaling", 1.0)))


@family("inkling_text")
def inkling(c: Config) -> ModelSpec:
    """Inkling has short convolutions on keys, on values, and on the outputs of attention and feed-forward.

    Instead of RoPE, attention adds learned logits to the scores. These logits depend on the distance between query and
    key. The router also computes weights for the shared experts.
    """
    hidden = c.size("hidden_size")
    taps, rank, extent = c.size("conv_kernel_size"), c.size("d_rel"), c.size("rel_extent")
    window = c.size("sliding_window_size")
    ids = c.entries("local_layer_ids")
    windowed = windowed_layers(
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
    c.doubt("short convolutions and distance logits: their weights are counted, but not their FLOPs and their state")
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
    for has_window, has_experts in zip(windowed, sparse, strict=True):
        mixer = local if has_window else full
        values = mixer.num_key_value_heads * mixer.head_dim
        extra = [
            matrix("attention.r_proj", "attention_extra", mixer.num_attention_heads * rank, hidden),
            matrix("attention.distance", "attention_extra", rank, window if has_window else extent),
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
        name = "local" if has_window else "global"
        layers += mixture_layers([(name, mixer)], [has_experts], ffn, gated(c, bias=False), extra=tuple(extra))
    scale = 1 / (c.number("logits_mup_width_multiplier", 1.0) or 1.0)
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=NoPositions(),
        embedding=Embedding(norm=True),
        head=Head(scale=scale),
    )


@family("iquestcoder")
def iquestcoder(c: Config) -> ModelSpec:
    """IQuest-Coder has Llama's architecture and a model type of its own."""
    return llama(c)


@family("jetmoe")
def jetmoe(c: Config) -> ModelSpec:
    """JetMoE has experts in the feed-forward and in attention. Attention experts are query and output projections.

    A token uses the query heads of the attention experts that the router selects for it.
    """
    hidden, kv_heads, head_dim = c.size("hidden_size"), c.size("num_key_value_heads"), c.size("head_dim")
    chosen, experts = c.size("num_experts_per_tok"), c.size("num_local_experts")
    c.ignore(
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
    c.doubt("all attention experts are counted as active, although a token uses only the selected attention experts")
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


@family("kolibri1")
def kolibri(c: Config) -> ModelSpec:
    """Kolibri 1 has experts in all layers, and four norms per layer.

    In models with windows, every fifth layer has full attention without position encoding. The other layers have RoPE
    and a sliding window.
    """
    window = c.window()
    local = windowed_layers(c, lambda index: (index + 1) % 5 != 0)
    mixers = [
        ("local", attention(c, qk_norm=HEAD_NORM, sliding_window=window))
        if windowed
        else ("global", attention(c, qk_norm=HEAD_NORM, positions=NoPositions() if window else None))
        for windowed in local
    ]
    shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"))
    router = Router(scores="sigmoid_topk", correction="buffer", normalize=c.flag("norm_topk_prob"))
    layers = mixture_layers(mixers, [True] * num_layers(c), moe(c, router=router, shared=shared), None, "sandwich")
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


@family("laguna")
def laguna(c: Config) -> ModelSpec:
    """In Laguna, each layer has its own number of query heads. Attention has an output gate with softplus.

    The gate has one value per head, or one value per channel.
    """
    bias, gating = c.flag("attention_bias"), c.get("gating")
    headwise = gating is True or gating == "per-head"
    count = num_layers(c)
    if bias and not headwise:
        c.doubt("attention_bias = True: llmbench counts a bias of the output gate, but the model has no such bias")
    heads = c.entries("num_attention_heads_per_layer", count) or [c.size("num_attention_heads")] * count
    local = windowed_layers(c, lambda index: False)
    window = c.window()
    expect_stated_rotation(c)
    positions, near_positions = (
        rope(c, head_dim=head_dim_of(c), layer_type=kind) for kind in ("full_attention", "sliding_attention")
    )
    mixers = []
    for num_heads, windowed in zip(heads, local, strict=True):
        mixer = attention(
            c,
            num_attention_heads=layer_size(c, "num_attention_heads_per_layer", num_heads),
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=HEAD_NORM,
            output_gate="headwise" if headwise else "elementwise",
            gate_activation="softplus",
            sliding_window=window if windowed else None,
            positions=near_positions if windowed else None,
        )
        mixers.append(("local" if windowed else "global", mixer))
    shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"))
    c.ignore("num_attention_heads", "swa_attention_sink_enabled")
    if c.number("moe_router_logit_softcapping", 0.0) > 0:
        c.unbuildable("moe_router_logit_softcapping: a soft cap on the router's logits is not supported")
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
        mixture_layers(mixers, sparse, ffn, gated(c, bias=False)),
        norm=norm(c),
        positions=positions,
    )


@family("longcat_flash")
def longcat_flash(c: Config) -> ModelSpec:
    """LongCat-Flash has pairs of layers. Each layer has latent attention and a dense feed-forward.

    In the first layer of a pair, experts run parallel to the dense feed-forward. Some of these experts are zero
    experts, which compute nothing.
    """
    count = (
        c.size("num_layers") if "num_layers" in c or "num_hidden_layers" not in c else c.size("num_hidden_layers") // 2
    )
    c.ignore("num_layers", "num_hidden_layers")
    c.put("num_hidden_layers", 2 * min(count, MOST_LAYERS + 1))
    mixer = latent_attention(c)
    dense = gated(c, bias=False)
    zero = c.count("zero_expert_num")
    c.ignore("zero_expert_type", "mla_scale_q_lora", "mla_scale_kv_lora", "attention_method", "router_dtype")
    c.unbuildable("mla_scale_q_lora and mla_scale_kv_lora: factors on the latents are not supported")
    experts = MoE(
        num_experts=c.size("n_routed_experts"),
        num_experts_per_tok=c.size("num_experts_per_tok"),
        intermediate_size=c.size("moe_intermediate_size"),
        activation=activation(c),
        router=Router(correction="buffer", bias=c.flag("router_bias"), scale=c.number("routed_scaling_factor", 1.0)),
        beside=dense,
        zero_experts=zero,
    )
    if zero:
        c.doubt(
            f"llmbench counts FLOPs of {experts.num_experts_per_tok} experts per token, but a token can select some of"
            f" the {zero} experts that compute nothing"
        )
    layers: list[tuple[str, Layer]] = [("moe", block(mixer, experts)), ("dense", block(mixer, dense))] * count
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=mixer.qk_rope_head_dim, interleaved=True))


@family("mellum")
def mellum(c: Config) -> ModelSpec:
    """Mellum 2 has Qwen3's attention.

    `layer_types` states which layers have a sliding window. `mlp_layer_types` states which layers have experts.
    """
    bias = c.flag("attention_bias")
    window = c.window()
    count = num_layers(c)
    kinds = layer_types(c, ["full_attention"] * count)
    sparse = c.entries("mlp_layer_types", count) or ["sparse"] * count
    experts = moe(c, router=Router(normalize=c.flag("norm_topk_prob")))
    plain = gated(c, bias=False)
    if c.count("num_mtp_layers"):
        c.note("num_mtp_layers: multi-token-prediction modules are not counted")
    c.ignore("mtp_layer_types", "mtp_mlp_layer_types", "intermediate_size")
    expect_stated_rotation(c)
    positions = rope(c, head_dim=head_dim_of(c), layer_type="full_attention")
    layers: list[tuple[str, Layer]] = []
    for kind, feed in zip(kinds, sparse, strict=True):
        span = window if kind == "sliding_attention" else None
        own_positions = rope(c, head_dim=head_dim_of(c), layer_type=str(kind))
        mixer = attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=HEAD_NORM,
            sliding_window=span,
            positions=None if own_positions == positions else own_positions,
        )
        name = ("local" if span else "global") + ("" if feed == "sparse" else "_dense")
        layers.append((name, block(mixer, experts if feed == "sparse" else plain)))
    return decoder(c, layers, norm=norm(c), positions=positions)


@family("nanochat")
def nanochat(c: Config) -> ModelSpec:
    """nanochat has norms without weights, a norm on the embedding, squared ReLU, and a soft cap on the logits."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(weight=False, after_rope=True))
    return decoder(
        c,
        block(mixer, dense(c, bias=False, default="relu2")),
        norm=norm(c, weight=False),
        positions=rope(c, head_dim=mixer.head_dim),
        embedding=Embedding(norm=True),
        head=Head(soft_cap=c.optional_number("final_logit_softcapping")),
    )


@family("openelm")
def openelm(c: Config) -> ModelSpec:
    """OpenELM has norms on q and k, and a head that is tied to the embedding.

    Later layers have more heads and wider feed-forwards than earlier layers.
    """
    hidden, count = c.size("model_dim"), c.size("num_transformer_layers")
    c.put("hidden_size", hidden)
    c.put("num_hidden_layers", count)
    heads = c.entries("num_query_heads", count) or []
    kv_heads = c.entries("num_kv_heads", count) or []
    factors = c.entries("ffn_multipliers", count) or []
    if not (heads and kv_heads and factors):
        raise c.error(
            "num_query_heads", "must be a list with one entry per layer, like num_kv_heads and ffn_multipliers"
        )
    head_dim, divisor = c.size("head_dim"), c.size("ffn_dim_divisor", 256)
    c.require("normalization_layer_name", "rms_norm")
    c.ignore("num_gqa_groups", "qkv_multipliers", "max_context_length", "rope_max_length")
    c.put("rope_theta", c.number("rope_freq_constant", 10000.0))
    qk_norm = QKNorm() if c.flag("normalize_qk_projections") else None
    with_glu, act = c.flag("ffn_with_glu", True), activation(c, "activation_fn_name")
    layers: list[tuple[str, Layer]] = []
    for num_heads, num_kv_heads, factor in zip(heads, kv_heads, factors, strict=True):
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1000:
            raise c.error(
                "ffn_multipliers", f"has the entry {str(factor)[:40]}; each must be a number between 0 and 1000"
            )
        width = max(divisor, int(factor * hidden + divisor / 2) // divisor * divisor)
        width += divisor if width < 0.9 * factor * hidden else 0
        mixer = attention(
            c,
            num_attention_heads=layer_size(c, "num_query_heads", num_heads),
            num_key_value_heads=layer_size(c, "num_kv_heads", num_kv_heads),
            head_dim=head_dim,
            qk_norm=qk_norm,
        )
        ffn = (Gated if with_glu else Dense)(intermediate_size=width, activation=act)
        layers.append(("block", block(mixer, ffn)))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim),
        tie_word_embeddings=c.flag("share_input_output_layers", True),
    )


@family("orion")
def orion(c: Config) -> ModelSpec:
    """Orion has Llama's architecture, but with LayerNorms."""
    return llama_from_hub(c, norm_kind="layernorm")


@family("rwkv")
def rwkv(c: Config) -> ModelSpec:
    """RWKV-4 has no attention. Its feed-forward (channel mixing) has squared ReLU and a gate of width hidden_size."""
    hidden = c.size("hidden_size")
    width = c.optional_size("attention_hidden_size") or hidden
    ffn = Dense(intermediate_size=c.optional_size("intermediate_size") or 4 * hidden, activation="relu2")
    c.ignore("context_length", "rescale_every")
    extra = (
        ExtraWeight(name="ffn.receptance", shape=(hidden, hidden), role="matmul", component="mlp"),
        ExtraWeight(name="ffn.time_mix_key", shape=(hidden,), role="vector", component="mlp"),
        ExtraWeight(name="ffn.time_mix_receptance", shape=(hidden,), role="vector", component="mlp"),
    )
    layer = block(RWKV(width=width), ffn, extra=extra)
    return decoder(c, layer, norm=norm(c, "layernorm"), embedding=Embedding(norm=True))


@family("seed_oss")
def seed_oss(c: Config) -> ModelSpec:
    """Seed-OSS has Llama's architecture, with biases on q, k and v (`attention_bias`), and on o
    (`attention_out_bias`)."""
    mixer = attention(c, qkv_bias=c.flag("attention_bias"), output_bias=c.flag("attention_out_bias"))
    return decoder(c, block(mixer, gated(c)), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("skywork")
def skywork(c: Config) -> ModelSpec:
    """Skywork has Llama's architecture and a model type of its own."""
    return llama_from_hub(c)


@family("solar_open")
def solar_open(c: Config) -> ModelSpec:
    """Solar Open is GLM-4.5 with experts in all layers. RoPE rotates all dimensions of a head."""
    c.ignore("first_k_dense_replace", "intermediate_size", "partial_rotary_factor", "use_qk_norm")
    mixer = attention(c, qkv_bias=c.flag("attention_bias"))
    return deepseek_model(c, mixer, positions_dim=mixer.head_dim, sparse=[True] * num_layers(c))


@family("xverse")
def xverse(c: Config) -> ModelSpec:
    """XVERSE has Llama's architecture. XVERSE-MoE has 6 of 64 small experts and two shared experts."""
    if "num_experts" not in c:
        return llama(c)
    width = c.size("intermediate_size")
    mixer = attention(c)
    c.unbuildable("no config key of XVERSE says whether the router divides expert weights by their sum")
    ffn = MoE(
        num_experts=c.size("num_experts"),
        num_experts_per_tok=c.size("moe_top_k"),
        intermediate_size=width,
        activation=activation(c),
        shared=shared_experts(c, "num_shared_experts", width),
    )
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("Yi")
def yi(c: Config) -> ModelSpec:
    """Yi has Llama's architecture and a model type of its own."""
    return llama(c)
