"""Hybrids of attention with delta rules or short convolutions: Qwen3-Next and 3.5, Kimi-Linear, Ling, OLMo,
LFM."""

from __future__ import annotations

from llmbench.spec.ffn import FFN, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.hybrid import silu_only
from llmbench.spec.huggingface.families.state_space import ssm_kind
from llmbench.spec.huggingface.parts import (
    attention,
    block,
    decoder,
    deepseek_router,
    gated,
    latent_attention,
    layer_types,
    moe,
    norm,
    rope,
)
from llmbench.spec.mixer import GatedDeltaNet, KimiDelta, LatentAttention, Mixer, QKNorm, ShortConv
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec, NextTokenPrediction, Placement
from llmbench.spec.position import NoPositions


def _delta_net(c: Config) -> GatedDeltaNet:
    """The gated delta net by the keys `linear_*`."""
    return GatedDeltaNet(
        num_key_heads=c.size("linear_num_key_heads"),
        num_value_heads=c.size("linear_num_value_heads"),
        key_head_dim=c.size("linear_key_head_dim"),
        value_head_dim=c.size("linear_value_head_dim"),
        conv_kernel=c.size("linear_conv_kernel_dim"),
    )


def _kinds(c: Config, default: list[str]) -> list[str]:
    """`layer_types` in their newer names: linear or full attention."""
    kinds = [ssm_kind(kind) for kind in layer_types(c, default)]
    for kind in kinds:
        if kind not in ("linear_attention", "full_attention"):
            raise c.error("layer_types", f"has an unknown kind {kind[:60]!r}")
    return kinds


@family("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
def qwen3_next(c: Config) -> ModelSpec:
    """Qwen3-Next and Qwen3.5: three layers of gated delta net to one of gated attention; dense, or experts
    with a gated shared one. Qwen3.5 has experts in every layer or in none, and says so by its type."""
    bias = c.flag("attention_bias")
    full = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(), output_gate="elementwise")
    c.require("attn_output_gate", True)
    silu_only(c, "hidden_act")
    delta = _delta_net(c)
    count = min(c.size("num_hidden_layers"), 10_001)
    every = c.size("full_attention_interval", 4)
    kinds = _kinds(c, ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)])
    sparse = [c.model_type != "qwen3_5_text"] * count
    if c.model_type == "qwen3_next":
        step, only_dense = c.count("decoder_sparse_step", 1), set(c.entries("mlp_only_layers") or [])
        some = c.count("num_experts") > 0 and step > 0
        sparse = [some and index not in only_dense and (index + 1) % step == 0 for index in range(count)]
    c.ignore("mamba_ssm_dtype")
    experts: FFN | None = None
    if any(sparse):
        c.ignore("intermediate_size")
        experts = moe(
            c,
            router=Router(normalize=c.flag("norm_topk_prob", True)),
            shared=SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"), gate=True),
        )
    layers: list[tuple[str, Layer]] = []
    for kind, has_experts in zip(kinds, sparse, strict=True):
        mixer: Mixer = full if kind == "full_attention" else delta
        name = "attention" if kind == "full_attention" else "linear"
        ffn = experts if has_experts and experts is not None else gated(c, bias=False)
        layers.append((name if has_experts == sparse[-1] else f"{name}_dense", block(mixer, ffn)))
    mtp = c.count("mtp_num_hidden_layers")
    c.ignore("mtp_use_dedicated_embeddings")
    return decoder(
        c,
        layers,
        norm=norm(c, unit_offset=True),
        positions=rope(c, head_dim=full.head_dim, partial=0.25),
        next_token_prediction=NextTokenPrediction(count=mtp, layer="attention")
        if mtp and any(name == "attention" for name, _ in layers)
        else None,
    )


def _after_dense(c: Config, count: int) -> list[bool]:
    """Which layers have experts: by `mlp_layer_types`, or all but the first ones."""
    kinds, first = c.entries("mlp_layer_types", count), c.count("first_k_dense_replace", 1)
    return [index >= first if kinds is None else kinds[index] == "sparse" for index in range(count)]


def _deepseek_moe(c: Config, sparse: list[bool], experts: str) -> FFN | None:
    """DeepSeek's experts where any layer has them."""
    if not any(sparse):
        return None
    shared, width = c.count("n_shared_experts"), c.size("moe_intermediate_size")
    return moe(
        c,
        experts=experts,
        router=deepseek_router(c),
        shared=SharedExperts(intermediate_size=shared * width) if shared else None,
    )


def _kda_layers(
    c: Config, kinds: list[str], full: LatentAttention, delta: KimiDelta, gate: bool
) -> list[tuple[str, Layer]]:
    """Delta attention and latent attention in turn, with dense feed-forwards first and experts after."""
    sparse = _after_dense(c, len(kinds))
    experts = _deepseek_moe(c, sparse, "num_local_experts")
    heads_gate = ExtraWeight(
        name="attention.g_proj",
        shape=(full.num_attention_heads, c.size("hidden_size")),
        role="matmul",
        component="attention",
    )
    layers: list[tuple[str, Layer]] = []
    for kind, has_experts in zip(kinds, sparse, strict=True):
        attends = kind == "full_attention"
        mixer: Mixer = full if attends else delta
        ffn = experts if has_experts and experts is not None else gated(c, bias=False)
        name = ("attention" if attends else "linear") + ("" if has_experts else "_dense")
        layers.append((name, block(mixer, ffn, extra=(heads_gate,) if attends and gate else ())))
    return layers


@family("kimi_linear")
def kimi_linear(c: Config) -> ModelSpec:
    """Kimi-Linear: delta attention, and latent attention without positions in every fourth layer or where
    `linear_attn_config` (which counts from one) says."""
    for own, standard in (
        ("num_experts", "num_local_experts"),
        ("num_shared_experts", "n_shared_experts"),
        ("num_expert_group", "n_group"),
        ("moe_renormalize", "norm_topk_prob"),
        ("num_experts_per_token", "num_experts_per_tok"),
    ):
        if own in c and standard not in c:
            c.put(standard, c.get(own))
    c.ignore(
        "mla_use_nope",
        "moe_router_activation_func",
        "use_grouped_topk",
        "num_experts",
        "num_shared_experts",
        "num_expert_group",
        "moe_renormalize",
        "num_experts_per_token",
        "num_nextn_predict_layers",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "head_dim",
        "moe_layer_freq",
    )
    if c.count("moe_layer_freq", 1) != 1:
        c.doubt(f"config moe_layer_freq = {c.get('moe_layer_freq')} is not understood")
    own_config = c.table("linear_attn_config")
    count = min(c.size("num_hidden_layers"), 10_001)
    derived = ["full_attention" if index and index % 4 == 0 else "linear_attention" for index in range(count)]
    attending = own_config.get("full_attn_layers")
    if isinstance(attending, list) and isinstance(own_config.get("kda_layers"), list):
        derived = ["full_attention" if index + 1 in attending else "linear_attention" for index in range(count)]
        if len(attending) + len(own_config["kda_layers"]) != count:
            raise c.error("linear_attn_config", f"does not name each of the {count} layers once")
    kinds = _kinds(c, derived)

    def of_kda(key: str, inner: str) -> int:
        """The nested table goes before the flat key."""
        if inner in own_config:
            c.put(key, own_config[inner])
        return c.size(key)

    delta = KimiDelta(
        num_heads=of_kda("linear_num_heads", "num_heads"),
        head_dim=of_kda("linear_head_dim", "head_dim"),
        conv_kernel=of_kda("linear_conv_kernel_dim", "short_conv_kernel_size"),
    )
    layers = _kda_layers(c, kinds, latent_attention(c, positions=NoPositions()), delta, gate=False)
    return decoder(c, layers, norm=norm(c), positions=NoPositions())


@family("bailing_hybrid")
def bailing_hybrid(c: Config) -> ModelSpec:
    """Ling hybrids: delta attention with whole gates, and in every `layer_group_size`-th layer latent
    attention with a gate a head. `head_dim` is the delta attention's."""
    head_dim = c.size("head_dim")
    c.ignore(
        "kda_safe_gate",
        "kda_lower_bound",
        "rope_interleave",
        "score_function",
        "moe_router_enable_expert_bias",
        "use_qkv_bias",
        "use_bias",
        "tie_word_embeddings",
    )
    if c.count("num_mtp_layers") and "num_mtp_layers" in c:
        c.note("multi-token-prediction layers are not counted")
    c.ignore("q_lora_rank")
    if c.optional_size("q_lora_rank"):
        c.doubt("config q_lora_rank is not understood")
    count = min(c.size("num_hidden_layers"), 10_001)
    every = c.size("layer_group_size")
    kinds = _kinds(c, ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)])
    delta = KimiDelta(
        num_heads=c.size("num_attention_heads"),
        head_dim=head_dim,
        conv_kernel=c.size("short_conv_kernel_size"),
        full_rank_gates=True,
    )
    full = latent_attention(c)
    layers = _kda_layers(c, kinds, full, delta, gate=True)
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=full.qk_rope_head_dim, interleaved=True),
        tie_word_embeddings=False,
    )  # the class never ties


@family("olmo_hybrid")
def olmo_hybrid(c: Config) -> ModelSpec:
    """OLMo hybrid: delta-net layers with norms before, every fourth an attention layer with norms after, as
    in OLMo 2."""
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
    silu_only(c, "hidden_act")
    c.ignore(
        "linear_a_log_min",
        "linear_a_log_max",
        "linear_dt_min",
        "linear_dt_max",
        "linear_dt_init_floor",
    )
    count = min(c.size("num_hidden_layers"), 10_001)
    derived = ["full_attention" if index % 4 == 3 else "linear_attention" for index in range(count)]
    if "full_attention" not in derived:
        derived[-1] = "full_attention"
    ffn = gated(c, bias=False)
    layers = [
        ("attention", block(full, ffn, "output")) if kind == "full_attention" else ("linear", block(delta, ffn))
        for kind in _kinds(c, derived)
    ]
    turns = c.table("rope_parameters").get("rope_theta", c.get("rope_theta")) is not None
    positions = rope(c, head_dim=full.head_dim)
    return decoder(c, layers, norm=norm(c), positions=positions if turns else NoPositions())


def _conv(c: Config) -> ShortConv:
    """LFM's gated short convolution."""
    return ShortConv(width=c.size("hidden_size"), conv_kernel=c.size("conv_L_cache"), bias=c.flag("conv_bias"))


def _lfm_ties(c: Config) -> bool:
    """`tie_embedding` goes before the usual key."""
    return c.flag("tie_embedding" if "tie_embedding" in c else "tie_word_embeddings")


@family("lfm2")
def lfm2(c: Config) -> ModelSpec:
    """LFM2: short convolutions with attention at `full_attn_idxs`; the feed-forward's width is two thirds of
    what is written, times a multiplier, rounded up."""
    full = attention(c, qk_norm=QKNorm())
    count = min(c.size("num_hidden_layers"), 10_001)
    attending = c.entries("full_attn_idxs")
    kinds = layer_types(c, ["full_attention" if attending is None or i in attending else "conv" for i in range(count)])
    width = c.size("block_ff_dim" if "block_ff_dim" in c else "intermediate_size")
    multiple, multiplier = c.size("block_multiple_of"), c.optional_number("block_ffn_dim_multiplier")
    if c.flag("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3)
        if multiplier is not None:
            width = multiple * -(-int(multiplier * width) // multiple)
    if width < 1:
        raise c.error("intermediate_size", "leaves the feed-forward no width")
    c.ignore(
        "block_dim",
        "block_mlp_init_scale",
        "block_norm_eps",
        "block_out_init_scale",
        "block_use_swiglu",
        "block_use_xavier_init",
        "conv_dim",
        "conv_dim_out",
        "conv_use_xavier_init",
        "num_heads",
        "intermediate_size",
        "theta",
        "tie_word_embeddings",
        "full_attn_idxs",
        "use_pos_enc",
    )
    for key in ("conv_dim", "conv_dim_out", "block_dim"):
        c.require(key, c.size("hidden_size"))
    ffn = gated(c, bias=False, width=width)
    conv = _conv(c)
    layers = [("conv", block(conv, ffn)) if kind == "conv" else ("attention", block(full, ffn)) for kind in kinds]
    positions = rope(c, head_dim=full.head_dim)
    return decoder(c, layers, norm=norm(c), positions=positions, tie_word_embeddings=_lfm_ties(c))


@family("lfm2_moe")
def lfm2_moe(c: Config) -> ModelSpec:
    """LFM2 with experts after the first `num_dense_layers`; the correction of the router is a buffer."""
    full = attention(c, qk_norm=QKNorm())
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = c.entries("layer_types", count)
    if kinds is None:
        raise c.error("layer_types", "is missing; `lfm2_moe` needs it")
    first = c.count("num_dense_layers")
    router = Router(
        scores="sigmoid",
        correction="buffer" if c.flag("use_expert_bias") else None,
        normalize=c.flag("norm_topk_prob"),
        scale=c.number("routed_scaling_factor", 1.0),
    )
    experts = moe(c, router=router) if first < count else None
    c.ignore("theta", "tie_word_embeddings", "num_heads")
    conv = _conv(c)
    layers: list[tuple[str, Layer]] = []
    for index, kind in enumerate(kinds):
        ffn = experts if index >= first and experts is not None else gated(c, bias=False)
        mixer: Mixer = conv if kind == "conv" else full
        name = "conv" if kind == "conv" else "attention"
        layers.append((name if index >= first else f"{name}_dense", block(mixer, ffn)))
    positions = rope(c, head_dim=full.head_dim)
    return decoder(c, layers, norm=norm(c), positions=positions, tie_word_embeddings=_lfm_ties(c))


@family("lfm3")
def lfm3(c: Config) -> ModelSpec:
    """LFM3: convolutions, windowed and full attention with a gate a head, and norms on both sides of a
    sublayer."""
    bias = c.flag("attention_bias")
    count = min(c.size("num_hidden_layers"), 10_001)
    derived = [
        "full_attention" if i % 4 == 2 else "sliding_attention" if i % 4 == 0 and i else "conv" for i in range(count)
    ]
    kinds = layer_types(c, derived)
    placement: Placement = "sandwich" if c.flag("use_sandwich_norm", True) else "pre"
    window = c.window()
    ffn = gated(c, bias=False)
    head_dim = c.size("head_dim")

    def attends(kind: str) -> Mixer:
        return attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=QKNorm(),
            output_gate="headwise" if c.flag("use_attention_gate", True) else None,
            sliding_window=window if kind == "sliding_attention" else None,
            positions=rope(c, head_dim=head_dim, layer_type=kind),
        )

    mixers = {kind: _conv(c) if kind == "conv" else attends(kind) for kind in dict.fromkeys(kinds)}
    names = {"conv": "conv", "sliding_attention": "local"}
    layers = [(names.get(kind, "global"), block(mixers[kind], ffn, placement)) for kind in kinds]
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim))
