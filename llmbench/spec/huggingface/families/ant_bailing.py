"""Importers for Bailing (Ling and Ring) by Ant Group."""

from __future__ import annotations

from llmbench.spec.ffn import Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    attention,
    decoder,
    gated,
    latent_attention,
    mixture_layers,
    moe,
    norm,
    prediction_modules,
    shared_experts,
)
from llmbench.spec.huggingface.families.moonshot_kimi import kda_layers
from llmbench.spec.huggingface.layer_lists import linear_layer_types, num_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import KimiDelta
from llmbench.spec.model import ModelSpec


@family("bailing_moe", "bailing_moe_v2")
def bailing_moe(c: Config) -> ModelSpec:
    """Ling and Ring have small routed experts and shared experts.

    From version 2.0 on, they have norms on q and k, and a sigmoid router with a stored bias for load balancing.
    """
    second = c.model_type == "bailing_moe_v2"
    normed = c.flag("use_qk_norm", second)
    mixer = attention(
        c,
        qkv_bias=c.flag("use_qkv_bias"),
        output_bias=c.flag("use_bias"),
        qk_norm=HEAD_NORM if normed else None,
    )
    corrected = c.flag("moe_router_enable_expert_bias", second)
    scores = c.text("score_function", "sigmoid" if second else "softmax")
    router = Router(
        scores="sigmoid" if scores == "sigmoid" else "softmax",
        correction="buffer" if corrected else None,
        normalize=c.flag("norm_topk_prob", True),
        scale=c.number("routed_scaling_factor", 1.0),
        n_group=c.size("n_group", 1),
        topk_group=c.size("topk_group", 1),
    )
    width = c.size("moe_intermediate_size")
    shared = shared_experts(c, "num_shared_experts", c.optional_size("moe_shared_expert_intermediate_size") or width)
    c.require("multi_gate", False)
    c.require("use_sliding_window", False)
    c.require("use_rmsnorm", True)
    c.require("norm_head", False)
    c.ignore(
        """
        sliding_window max_window_layers embedding_dropout output_dropout norm_softmax
        moe_router_topk_scaling_factor topk_method router_type mtp_loss_scaling_factor
        """,
    )
    ffn = moe(c, router=router, shared=shared)
    first = c.count("first_k_dense_replace")
    sparse = [index >= first for index in range(num_layers(c))]
    if all(sparse):
        c.ignore("intermediate_size")
    layers = mixture_layers(mixer, sparse, ffn, None if all(sparse) else gated(c, bias=False))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim),
        next_token_prediction=prediction_modules(c.count("num_nextn_predict_layers"), list(layers)),
    )


@family("bailing_hybrid")
def bailing_hybrid(c: Config) -> ModelSpec:
    """Ling hybrids have Kimi's delta attention, and latent attention in every `layer_group_size`-th layer.

    Latent attention has an output gate per head. The config key `head_dim` is the head width of the delta attention.
    transformers 5 writes this width as `linear_head_dim`, and qk_rope_head_dim as `head_dim`.
    """
    head_dim = c.optional_size("linear_head_dim") or c.size("head_dim")
    c.ignore("head_dim")
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
        c.note("num_mtp_layers: multi-token-prediction layers are not counted")
    rank = c.optional_size("q_lora_rank")
    if rank:
        c.doubt(f"config key q_lora_rank = {rank} is not understood; only null is supported")
    count = num_layers(c)
    every = c.size("layer_group_size")
    kinds = linear_layer_types(c, ["linear_attention" if (i + 1) % every else "full_attention" for i in range(count)])
    delta = KimiDelta(
        num_heads=c.size("linear_num_heads", c.size("num_attention_heads")),
        head_dim=head_dim,
        conv_kernel=c.size("linear_conv_kernel_dim", c.size("short_conv_kernel_size")),
        full_rank_decay=True,
        full_rank_gate=True,
    )
    full = latent_attention(c)
    layers = kda_layers(c, kinds, full, delta, gate="headwise")
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=full.qk_rope_head_dim, interleaved=True),
        tie_word_embeddings=False,  # the head is never tied to the embedding
    )
