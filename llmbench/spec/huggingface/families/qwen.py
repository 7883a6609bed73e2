"""Importers for Qwen 1 to 3.5 by Alibaba, with MoE models, hybrids, and the text parts of Qwen-VL and Qwen-Omni."""

from __future__ import annotations

from llmbench.spec.ffn import FFN, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    attention,
    block,
    decoder,
    expect_silu,
    gated,
    head_dim_of,
    mixture_layers,
    moe,
    norm,
    state_dtype,
)
from llmbench.spec.huggingface.layer_lists import layer_types, linear_layer_types, num_layers, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import GatedDeltaNet, Mixer, QKNorm
from llmbench.spec.model import Layer, ModelSpec, NextTokenPrediction


@family("qwen")
def qwen(c: Config) -> ModelSpec:
    """Qwen 1 has biases on q, k and v. The config key `kv_channels` is the head width.

    The config key `intermediate_size` is the sum of the widths of gate and up projection.
    """
    heads = c.size("num_attention_heads")
    head_dim = c.size("kv_channels", max(1, c.size("hidden_size") // heads))
    bias = not c.flag("no_bias", True)
    c.ignore("bf16", "fp16", "fp32", "emb_dropout_prob", "attn_dropout_prob", "scale_attn_weights")
    c.ignore("use_cache_kernel", "use_cache_quantization")
    if c.flag("use_dynamic_ntk", True) or c.flag("use_logn_attn", True):
        c.unbuildable(
            "use_dynamic_ntk or use_logn_attn: the scaling of RoPE or queries above seq_length is not supported"
        )
    c.ignore("softmax_in_fp32", "onnx_safe", "params_dtype", "pos_emb", "tokenizer_type", "visual")
    mixer = attention(c, num_key_value_heads=heads, head_dim=head_dim, qkv_bias=True, output_bias=bias)
    ffn = gated(c, bias=bias, width=max(1, c.size("intermediate_size") // 2))
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=head_dim))


@family("qwen2")
def qwen2(c: Config) -> ModelSpec:
    """Qwen 1.5, 2 and 2.5 have biases on q, k and v only."""
    return qwen_dense(c, qkv_bias=True)


@family("qwen3")
def qwen3(c: Config) -> ModelSpec:
    """Qwen3 has norms on each head of q and k. It has no biases unless `attention_bias` is true."""
    bias = c.flag("attention_bias")
    return qwen_dense(c, qkv_bias=bias, output_bias=bias, qk_norm=HEAD_NORM)


def qwen_dense(c: Config, **fields: object) -> ModelSpec:
    """Return Qwen's dense decoder. `fields` are fields of its Attention.

    If `use_sliding_window` is true, all layers after the first `max_window_layers` layers have a sliding window.
    """
    c.ignore("sliding_window")
    window = c.window() if c.flag("use_sliding_window") else None
    first = c.count("max_window_layers")
    derived = ["sliding_attention" if window and i >= first else "full_attention" for i in range(num_layers(c))]
    full = attention(c, **fields)
    kinds = layer_types(c, derived)
    ffn = gated(c, bias=False)
    local = attention(c, sliding_window=window, **fields)
    layers = [
        ("local", block(local, ffn)) if kind == "sliding_attention" else ("block", block(full, ffn)) for kind in kinds
    ]
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=full.head_dim))


@family("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text")
def qwen2_vl(c: Config) -> ModelSpec:
    """The text parts of Qwen2-VL, Qwen2.5-VL and Qwen2.5-Omni are Qwen2. RoPE encodes time, height and width."""
    return qwen_dense(c, qkv_bias=True)


@family("qwen3_vl_text")
def qwen3_vl(c: Config) -> ModelSpec:
    """The text part of Qwen3-VL is Qwen3 without sliding windows."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=HEAD_NORM)
    positions = rope(c, head_dim=mixer.head_dim)
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=positions)


@family("qwen2_moe", "qwen3_moe", "qwen3_vl_moe_text", "qwen3_omni_moe_text")
def qwen_moe(c: Config) -> ModelSpec:
    """Qwen1.5-MoE, Qwen2-MoE and Qwen3-MoE have experts in the layers that the config states.

    The config keys are `decoder_sparse_step` and `mlp_only_layers`. Qwen1.5-MoE and Qwen2-MoE also have a shared expert
    with a gate.
    """
    qwen2 = c.model_type == "qwen2_moe"
    bias = c.flag("qkv_bias", True) if qwen2 else c.flag("attention_bias")
    c.ignore("sliding_window", "max_window_layers", "use_sliding_window")
    c.require("use_qk_norm", not qwen2)
    window = None
    vision = c.model_type == "qwen3_vl_moe_text"
    if not vision and c.model_type != "qwen3_omni_moe_text" and c.flag("use_sliding_window"):
        window = c.window()
    count, first = num_layers(c), c.count("max_window_layers")
    step, only_dense = c.count("decoder_sparse_step", 1), set(c.entries("mlp_only_layers") or [])
    shared = None
    if qwen2:
        shared = SharedExperts(intermediate_size=c.size("shared_expert_intermediate_size"), gate=True)
        local = windowed_layers(c, lambda index: window is not None and (index + 1) % 2 == 1 and index < first)
        if window is None and any(local):
            c.unbuildable("layer_types contains sliding_attention, but use_sliding_window is false")
    else:
        local = [window is not None] * count
    common = {"qkv_bias": bias, "output_bias": bias and not qwen2, "qk_norm": None if qwen2 else HEAD_NORM}
    mixers = [
        ("local" if windowed else "", attention(c, sliding_window=window if windowed else None, **common))
        for windowed in local
    ]
    sparse = [
        index not in only_dense and c.size("num_experts") > 0 and step > 0 and (index + 1) % step == 0
        for index in range(count)
    ]
    ffn = moe(c, router=Router(normalize=c.flag("norm_topk_prob") or vision), shared=shared)
    if all(sparse):
        c.ignore("intermediate_size")
    layers = mixture_layers(mixers, sparse, ffn, None if all(sparse) else gated(c, bias=False))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


def delta_net(c: Config) -> GatedDeltaNet:
    """Return the gated delta net. The config keys `linear_*` state its dimensions."""
    return GatedDeltaNet(
        num_key_heads=c.size("linear_num_key_heads"),
        num_value_heads=c.size("linear_num_value_heads"),
        key_head_dim=c.size("linear_key_head_dim"),
        value_head_dim=c.size("linear_value_head_dim"),
        conv_kernel=c.size("linear_conv_kernel_dim"),
        state_dtype=state_dtype(c, "mamba_ssm_dtype"),
    )


@family("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
def qwen3_next(c: Config) -> ModelSpec:
    """Qwen3-Next and Qwen3.5 have three layers with a gated delta net, then one layer with gated attention, and so on.

    A layer has a dense feed-forward, or routed experts and a shared expert with a gate. In Qwen3.5, the model type
    decides whether all layers or no layers have experts.
    """
    bias = c.flag("attention_bias")
    full = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(), output_gate="elementwise")
    c.require("attn_output_gate", True)
    expect_silu(c, "hidden_act")
    expect_silu(c, "output_gate_type")  # the gate of the delta net
    delta = delta_net(c)
    count = num_layers(c)
    every = c.size("full_attention_interval", 4)
    kinds = linear_layer_types(c, ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)])
    sparse = [c.model_type != "qwen3_5_text"] * count
    if c.model_type == "qwen3_next":
        step, only_dense = c.count("decoder_sparse_step", 1), set(c.entries("mlp_only_layers") or [])
        some = c.count("num_experts") > 0 and step > 0
        sparse = [some and index not in only_dense and (index + 1) % step == 0 for index in range(count)]
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
        next_token_prediction=NextTokenPrediction(count=mtp, layer="attention", files="own")
        if mtp and any(name == "attention" for name, _ in layers)
        else None,
    )
