"""Importers for Inkling 1 and 2 by Thinking Machines Lab."""

from __future__ import annotations

from llmbench.spec.ffn import Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
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
from llmbench.spec.huggingface.layer_lists import sparse_layers, windowed_layers
from llmbench.spec.model import Embedding, Head, Layer, ModelSpec
from llmbench.spec.position import NoPositions


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
        """
        log_scaling_n_floor log_scaling_alpha shared_expert_sink rms_norm_eps_moe_gate route_scale
        num_mtp_layers chain_hidden_post_norm mtp_hidden_states_first mtp_local_layer_ids
        unpadded_vocab_size tie_word_embeddings number_of_conv_states
        """
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
        tie_word_embeddings=False,  # transformers never ties the head to the embedding
    )


@family("inkling2_text")
def inkling2(c: Config) -> ModelSpec:
    """Inkling 2 adds to Inkling an output gate, sinks that depend on the token, and sums over blocks of layers.

    In layers with full attention, queries, keys and values have norms of their own, and the short convolutions of keys
    and values have taps that depend on the token. All layers have experts, without shared experts.
    """
    hidden, taps, rank = c.size("hidden_size"), c.size("conv_kernel_size"), c.size("d_rel")
    window, extent = c.size("sliding_window_size"), c.size("rel_extent")
    windowed = windowed_layers(c, lambda index: (index + 1) % 6 != 0, "hybrid_sliding", "hybrid")
    router = Router(scores="sigmoid", correction="buffer", normalize=True, scale=c.number("route_scale", 1.0))
    ffn = moe(c, experts="n_routed_experts", router=router)
    c.doubt("short convolutions and distance logits: their weights are counted, but not their FLOPs and their state")
    c.unbuildable("short convolutions, distance logits, and weighted sums over blocks of layers are unsupported")
    c.ignore(
        """
        log_scaling_n_floor log_scaling_alpha unpadded_vocab_size number_of_conv_states n_layers_per_attn_res_block
        qk_l2_clip_threshold rel_l2_clip_threshold mlp_gate_softcap mlp_up_softcap scoring_func tie_word_embeddings
        """
    )
    full = attention(c, output_gate="elementwise")
    local = attention(
        c,
        num_attention_heads=c.size("swa_num_attention_heads"),
        num_key_value_heads=c.size("swa_num_key_value_heads"),
        head_dim=c.size("swa_head_dim"),
        output_gate="elementwise",
        sliding_window=window,
    )
    layers: list[tuple[str, Layer]] = []
    for index, near in enumerate(windowed):
        mixer = local if near else full
        heads, kv_heads = mixer.num_attention_heads, mixer.num_key_value_heads
        sums = (0 if index == 0 else 1 if near else 3) + 1
        extra = [
            matrix("attention.r_proj", "attention_extra", heads * rank, hidden),
            matrix("attention.sink_proj", "attention_extra", heads, hidden),
            matrix("attention.distance", "attention_extra", rank, window if near else extent),
            vector("attention.q_scale", "attention_extra", heads, mixer.head_dim),
            vector("attention.r_scale", "attention_extra", heads, rank),
            vector("attention.convs", "attention_extra", 2 * kv_heads * mixer.head_dim, taps),
            vector("attention.output_conv", "other", hidden, taps),
            vector("ffn.output_conv", "other", hidden, taps),
            vector("residual_queries", "other", sums, hidden),
        ]
        if not near:
            extra += [
                matrix("attention.conv_taps", "attention_extra", 2 * kv_heads * taps, hidden),
                vector("attention.kv_input_norms", "norms", 2, hidden),
            ]
        name = ("local" if near else "global") + ("" if index else "_first")
        layers.append((name, block(mixer, ffn, extra=tuple(extra))))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=NoPositions(),
        embedding=Embedding(norm=True),
        head=Head(soft_cap=c.optional_number("final_logit_softcapping")),
        tie_word_embeddings=False,  # transformers never ties the head to the embedding
        extra=(vector("final_residual_query", "other", hidden),),
    )
