"""Dense decoders that differ from LLaMA in a thing or two: feed-forwards, norms, two kinds of layer."""

from __future__ import annotations

import msgspec

from llmbench.errors import UnsupportedError
from llmbench.spec.ffn import Dense, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.dense import HEAD_NORM, granite_model
from llmbench.spec.huggingface.parts import (
    attention,
    block,
    decoder,
    dense,
    gated,
    head_dim_of,
    layer_types,
    moe,
    norm,
    rope,
    states_rotation,
)
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec, Placement
from llmbench.spec.position import NoPositions, Positions


@family("arcee", "jais2")
def arcee(c: Config) -> ModelSpec:
    """AFM and Jais 2: LLaMA with feed-forwards of two matrices and squared ReLU; Jais 2 with LayerNorms."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    ffn = dense(c, bias=c.flag("mlp_bias"), default="relu2")
    kind = "layernorm" if c.model_type == "jais2" else "rmsnorm"
    return decoder(c, block(mixer, ffn), norm=norm(c, kind), positions=rope(c, head_dim=mixer.head_dim))


@family("nemotron")
def nemotron(c: Config) -> ModelSpec:
    """Nemotron-4 and Minitron: squared ReLU, LayerNorms by 1 + weight, half of each head rotated."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    c.require("kv_channels", mixer.head_dim)
    c.ignore("rope_percentage", "rotary_percentage", "rope_percent")
    ffn = dense(c, bias=c.flag("mlp_bias"), default="relu2")
    positions = rope(c, head_dim=mixer.head_dim, partial=0.5)
    return decoder(c, block(mixer, ffn), norm=norm(c, "layernorm", unit_offset=True), positions=positions)


@family("apertus")
def apertus(c: Config) -> ModelSpec:
    """Apertus: qk-norm, and xIELU, an activation with two trained and two stored numbers a layer."""
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


@family("bitnet")
def bitnet(c: Config) -> ModelSpec:
    """BitNet b1.58: a norm before each sublayer's last matrix; weights count however few bits they have."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, output_norm=True)
    if mixer.num_attention_heads * mixer.head_dim != c.size("hidden_size"):
        c.doubt("the norm of BitNet's attention output is not as wide as its heads")
    ffn = gated(c, bias=False)
    inner = ExtraWeight(name="ffn.sub_norm", shape=(ffn.intermediate_size,), role="vector", component="norms")
    layer = block(mixer, ffn, extra=(inner,))
    return decoder(c, layer, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("cwm", "ministral")
def windowed_by_layer(c: Config) -> ModelSpec:
    """CWM (every fourth layer global, from the first) and Ministral (all local): windows by `layer_types`."""
    window = c.window()
    count = min(c.size("num_hidden_layers"), 10_001)
    if c.model_type == "cwm":
        derived = ["sliding_attention" if i % 4 else "full_attention" for i in range(count)]
        states_rotation(c)
    else:
        derived = ["sliding_attention" if window else "full_attention"] * count
    c.require("attention_bias", False)
    ffn = gated(c)
    layers = [
        ("local", block(attention(c, sliding_window=window), ffn))
        if kind == "sliding_attention"
        else ("global", block(attention(c), ffn))
        for kind in layer_types(c, derived)
    ]
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


@family("diffllama")
def diffllama(c: Config) -> ModelSpec:
    """DiffLlama: the difference of two attentions, weighted by four vectors a layer."""
    bias = c.flag("attention_bias")
    c.ignore("lambda_std_dev")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    extra = tuple(
        ExtraWeight(
            name=f"attention.lambda_{name}",
            shape=(mixer.head_dim,),
            role="vector",
            component="attention_extra",
        )
        for name in ("q1", "k1", "q2", "k2")
    )
    c.doubt("differential attention: FLOPs leave out that its values are twice as wide as its heads")
    layer = block(mixer, gated(c, bias=False), extra=extra)
    return decoder(c, layer, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("doge")
def doge(c: Config) -> ModelSpec:
    """Doge: qk-norm, a mask computed from the values, a trained scale on each residual."""
    if c.flag("is_moe"):
        raise UnsupportedError("Doge's cross-domain mixture of experts (`is_moe`) is not supported")
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


@family("ernie4_5")
def ernie(c: Config) -> ModelSpec:
    """ERNIE 4.5 without experts: one key for all biases, neighbours rotated in pairs."""
    bias = c.flag("use_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    positions = rope(c, head_dim=mixer.head_dim, interleaved=True)
    return decoder(c, block(mixer, gated(c, bias=bias)), norm=norm(c), positions=positions)


@family("helium")
def helium(c: Config) -> ModelSpec:
    """Helium: LLaMA, with `attention_bias` on q, k and v only."""
    mixer = attention(c, qkv_bias=c.flag("attention_bias"))
    if mixer.num_attention_heads * mixer.head_dim != c.size("hidden_size"):
        c.doubt("Helium's output projection is as wide as the model, not as its heads")
    positions = rope(c, head_dim=mixer.head_dim, interleaved=True)
    return decoder(c, block(mixer, gated(c)), norm=norm(c), positions=positions)


# fmt: off
_HUNYUAN_KEYS = [
    "norm_type", "use_rotary_pos_emb", "cla_share_factor", "moe_topk", "num_shared_expert",
    "moe_intermediate_size", "org_vocab_size", "moe_layer_num_skipped", "group_limited_greedy", "n_group",
    "topk_group", "capacity_factor", "routed_scaling_factor", "norm_topk_prob", "moe_drop_tokens",
    "moe_random_routing_dropped_token", "mask_init_id", "add_classification_head", "class_num",
    "pool_type", "dense_list", "position_embedding_xdrope", "text_start_id", "text_end_id",
    "image_token_id", "im_start_id", "im_end_id", "im_newline_id", "eod_token_id", "pad_id", "eos_id",
    "bos_id", "enable_lm_head_fp32", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim",
    "qk_rope_head_dim", "v_head_dim", "rope_theta",
]
# fmt: on
"""Keys of the whole Hunyuan line that change nothing in a dense model without latent attention."""


@family("hunyuan_v1_dense")
def hunyuan_dense(c: Config) -> ModelSpec:
    """Hunyuan's dense sizes: qk-norm after the rotation. Their configs carry the keys of the mixture's."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(after_rope=True))
    c.require("use_qk_norm", True)
    c.require("attention_head_dim", mixer.head_dim)
    for switch in ("mlp_bias", "use_cla", "use_mla", "use_mixed_mlp_moe"):
        c.require(switch, False)
    c.require("num_experts", 1)
    c.ignore(*_HUNYUAN_KEYS)
    layer = block(mixer, gated(c, bias=False))
    return decoder(c, layer, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("hyperclovax")
def hyperclovax(c: Config) -> ModelSpec:
    """HyperCLOVA X: Granite's multipliers, and norms on both sides of each sublayer by `use_post_norm`."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, scale=c.optional_number("attention_multiplier"))
    c.ignore("end_token_id")
    placement: Placement = "sandwich" if c.flag("use_post_norm", True) else "pre"
    layer = block(mixer, gated(c), placement, residual_scale=c.number("residual_multiplier", 1.0))
    spec = granite_model(c, layer, mixer.head_dim)  # but its logits are multiplied, not divided
    return msgspec.structs.replace(spec, head=Head(scale=c.number("logits_scaling", 1.0)))


def theta_of_layer(c: Config, theta: object) -> Positions | None:
    """Positions by an entry of `layer_rope_theta`: 0 for none, None or the model's own base for the model's."""
    if theta == 0:
        return NoPositions()
    positions = rope(c, head_dim=head_dim_of(c))
    if not isinstance(theta, (int, float)) or theta == positions.theta:
        return None
    return msgspec.structs.replace(positions, theta=float(theta))


@family("granite_swa")
def granite_swa(c: Config) -> ModelSpec:
    """Granite with sinks and, three layers of four, a window; a layer's own rotation base, 0 for none."""
    bias = c.flag("attention_bias")
    window = c.window()
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = layer_types(c, ["sliding_attention" if i % 4 else "full_attention" for i in range(count)])
    bases = c.entries("layer_rope_theta", count) or [None] * count
    multiplier = c.optional_number("attention_multiplier")
    ffn, scale = gated(c), c.number("residual_multiplier", 1.0)
    layers: list[tuple[str, Layer]] = []
    for kind, base in zip(kinds, bases, strict=True):
        local = kind == "sliding_attention"
        mixer = attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            sinks=True,
            sliding_window=window if local else None,
            scale=multiplier,
            positions=theta_of_layer(c, base),
        )
        layers.append(("local" if local else "global", block(mixer, ffn, residual_scale=scale)))
    return granite_model(c, layers, head_dim_of(c))


@family("nanochat")
def nanochat(c: Config) -> ModelSpec:
    """nanochat: no norm has a weight, one stands behind the embedding; squared ReLU, soft-capped logits."""
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


@family("seed_oss")
def seed_oss(c: Config) -> ModelSpec:
    """Seed-OSS: biases on q, k, v by one key and on the output by another."""
    mixer = attention(c, qkv_bias=c.flag("attention_bias"), output_bias=c.flag("attention_out_bias"))
    return decoder(c, block(mixer, gated(c)), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("smollm3")
def smollm3(c: Config) -> ModelSpec:
    """SmolLM3: every fourth layer without positions (and, in none of the released sizes, with a window)."""
    count = min(c.size("num_hidden_layers"), 10_001)
    every = c.size("no_rope_layer_interval", 4)
    turned = c.entries("no_rope_layers")
    turned = turned if turned and len(turned) >= count else [(i + 1) % every != 0 for i in range(count)]
    window = c.window() if c.flag("use_sliding_window") else None
    c.ignore("sliding_window", "max_window_layers")
    kinds = layer_types(
        c, ["sliding_attention" if window and not turned[i] else "full_attention" for i in range(count)]
    )
    if window is None and "sliding_attention" in kinds:
        c.inexact("layer_types has layers with a window, which another key switches off")
    bias = c.flag("attention_bias")
    ffn = gated(c)
    layers: list[tuple[str, Layer]] = []
    for kind, rotates in zip(kinds, turned, strict=False):
        own = window if kind == "sliding_attention" else None
        positions = None if rotates else NoPositions()
        mixer = attention(c, qkv_bias=bias, output_bias=bias, sliding_window=own, positions=positions)
        layers.append(("block" if rotates else "nope", block(mixer, ffn)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


@family("mellum")
def mellum(c: Config) -> ModelSpec:
    """Mellum 2: Qwen3's attention, windows by `layer_types`, experts by `mlp_layer_types`."""
    bias = c.flag("attention_bias")
    window = c.window()
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = layer_types(c, ["full_attention"] * count)
    sparse = c.entries("mlp_layer_types", count) or ["sparse"] * count
    experts = moe(c, router=Router(normalize=c.flag("norm_topk_prob")))
    plain = gated(c, bias=False)
    if c.count("num_mtp_layers"):
        c.note("multi-token prediction modules are not counted")
    c.ignore("mtp_layer_types", "mtp_mlp_layer_types", "intermediate_size")
    states_rotation(c)
    positions = rope(c, head_dim=head_dim_of(c), layer_type="full_attention")
    layers: list[tuple[str, Layer]] = []
    for kind, feed in zip(kinds, sparse, strict=True):
        own = window if kind == "sliding_attention" else None
        turned = rope(c, head_dim=head_dim_of(c), layer_type=str(kind))
        mixer = attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=HEAD_NORM,
            sliding_window=own,
            positions=None if turned == positions else turned,
        )
        name = ("local" if own else "global") + ("" if feed == "sparse" else "_dense")
        layers.append((name, block(mixer, experts if feed == "sparse" else plain)))
    return decoder(c, layers, norm=norm(c), positions=positions)


@family("cohere_compass_text")
def cohere_compass(c: Config) -> ModelSpec:
    """North Vision: Command-R's parallel block, windows by `layer_types`, NoPE types."""
    bias = c.flag("attention_bias")
    window = c.window()
    kinds = layer_types(c, ["full_attention"] * min(c.size("num_hidden_layers"), 10_001))
    c.ignore("sliding_window_pattern", "pooling")
    rotations = c.table("rope_parameters")
    ffn = gated(c, bias=False)
    layers: list[tuple[str, Layer]] = []
    for kind in kinds:
        local = kind == "sliding_attention"
        turned = rotations.get(kind) or not {"full_attention", "sliding_attention"} & rotations.keys()
        mixer = attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            sliding_window=window if local else None,
            positions=None if turned else NoPositions(),
        )
        layers.append(("local" if local else "global", block(mixer, ffn, "parallel")))
    return decoder(
        c,
        layers,
        norm=norm(c, "layernorm", bias=False),
        positions=rope(c, head_dim=head_dim_of(c), layer_type="sliding_attention", interleaved=True),
        head=Head(scale=c.number("logit_scale", 1.0)),
    )
