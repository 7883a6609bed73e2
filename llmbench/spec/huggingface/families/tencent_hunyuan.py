"""Importers for Hunyuan (HY) and Youtu by Tencent."""

from __future__ import annotations

import msgspec

from llmbench.spec.ffn import MoE, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    SIGMOID,
    activation,
    attention,
    block,
    decoder,
    gated,
    matrix,
    mixture_layers,
    moe,
    norm,
    shared_experts,
    vector,
)
from llmbench.spec.huggingface.families.deepseek import deepseek_ffn, indexed_attention
from llmbench.spec.huggingface.families.openbmb_minicpm import latent_attention_with_default_values
from llmbench.spec.huggingface.layer_lists import layer_sizes, num_layers, sparse_after_first
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import HyperConnections, ModelSpec

_HUNYUAN_KEYS = [
    "norm_type",
    "use_rotary_pos_emb",
    "cla_share_factor",
    "moe_topk",
    "num_shared_expert",
    "moe_intermediate_size",
    "org_vocab_size",
    "moe_layer_num_skipped",
    "group_limited_greedy",
    "n_group",
    "topk_group",
    "capacity_factor",
    "routed_scaling_factor",
    "norm_topk_prob",
    "moe_drop_tokens",
    "moe_random_routing_dropped_token",
    "mask_init_id",
    "add_classification_head",
    "class_num",
    "pool_type",
    "dense_list",
    "position_embedding_xdrope",
    "text_start_id",
    "text_end_id",
    "image_token_id",
    "im_start_id",
    "im_end_id",
    "im_newline_id",
    "eod_token_id",
    "pad_id",
    "eos_id",
    "bos_id",
    "enable_lm_head_fp32",
    "num_experts_per_tok",
    "num_media_embeds",
    "kv_lora_rank",
    "q_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "rope_theta",
]
"""Config keys of Hunyuan that change nothing in a dense model without latent attention."""


@family("hunyuan_v1_dense")
def hunyuan_dense(c: Config) -> ModelSpec:
    """Hunyuan's dense models have norms on q and k, which are applied after RoPE.

    Their configs also contain keys of Hunyuan's MoE models. These keys change nothing in a dense model.
    """
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


@family("hunyuan_v1_moe")
def hunyuan_moe(c: Config) -> ModelSpec:
    """Hunyuan-A13B has routed experts and a shared expert in each layer. Norms on q and k are applied after RoPE."""
    bias = c.flag("attention_bias")
    c.require("use_qk_norm", True)
    c.ignore(
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
        if set(layer_sizes(c, key, default=usual)) != {usual}:
            c.doubt(f"config key {key} is not understood; only {usual} is supported")
    layers = []
    for number, chosen in zip(layer_sizes(c, "num_experts"), layer_sizes(c, "moe_topk"), strict=True):
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


@family("hunyuan_vl_text")
def hunyuan_vl(c: Config) -> ModelSpec:
    """The text part of Hunyuan-VL is Llama with norms on each head of q and k, which are applied after RoPE."""
    bias = c.flag("attention_bias")
    c.ignore("use_qk_norm")
    c.require("use_qk_norm", True)
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=QKNorm(after_rope=True))
    positions = rope(c, head_dim=mixer.head_dim)
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=positions)


@family("hy_v3")
def hy_v3(c: Config) -> ModelSpec:
    """Hunyuan 3 has norms on each head of q and k, and a sigmoid router. Only the first layer is dense."""
    bias, mlp_bias = c.flag("attention_bias"), c.flag("mlp_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=HEAD_NORM)
    width = c.size("moe_intermediate_size")
    shared = shared_experts(c, "num_shared_experts", width, bias=mlp_bias)
    if shared is None:
        c.doubt("num_shared_experts = 0, but transformers always builds a shared expert of width intermediate_size")
    c.ignore("enable_moe_fp32_combine")
    router = msgspec.structs.replace(SIGMOID, scale=c.number("router_scaling_factor", 1.0))
    ffn = moe(c, router=router, shared=shared)
    sparse = sparse_after_first(c, 1)
    return decoder(
        c,
        mixture_layers(mixer, sparse, ffn, gated(c)),
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim),
    )


@family("hy_v4")
def hy_v4(c: Config) -> ModelSpec:
    """Hunyuan 4 has latent attention with an output gate and sinks. Several layers share the keys of one indexer.

    The model has several residual streams instead of one (hyper-connections). Two small matrices per layer compute how
    the streams are combined.
    """
    count, hidden = num_layers(c), c.size("hidden_size")
    listed = c.entries("indexer_types", count)
    shared = [kind == "shared" for kind in listed] if listed else [i > 0 and (i - 1) % 4 != 0 for i in range(count)]
    mixers = [("shared" if reused else "", indexed_attention(c, shared=reused)) for reused in shared]
    heads, value = c.size("num_attention_heads"), c.size("v_head_dim")
    extra = (
        matrix("attention.gate_proj", "attention", heads * value, hidden),
        vector("attention.sinks", "attention_extra", heads),
    )
    c.ignore("layer_types", "hc_magnitude", "hc_eps", "learnable_sink_init", "swiglu_limit")
    layers = mixture_layers(mixers, sparse_after_first(c, 1), deepseek_ffn(c), gated(c, bias=False), extra=extra)
    positions = rope(c, head_dim=c.size("qk_rope_head_dim"))
    streams = HyperConnections(streams=c.size("hc_mult"), mixes=False)
    return decoder(c, layers, norm=norm(c), positions=positions, hyper_connections=streams)


@family("youtu")
def youtu(c: Config) -> ModelSpec:
    """Youtu-LLM is a dense model with latent attention."""
    mixer = latent_attention_with_default_values(c)
    positions = rope(c, head_dim=mixer.qk_rope_head_dim, interleaved=c.flag("rope_interleave", True))
    c.ignore("mlp_bias", "embedding_initializer_range")
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=positions)
