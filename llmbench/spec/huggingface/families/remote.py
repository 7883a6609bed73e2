"""Mixtures whose code lives beside their weights and not in transformers; shapes as their authors publish
them."""

from __future__ import annotations

from llmbench.spec.ffn import Gated, MoE, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.arrange import arrange, no_effect, num_layers, shared_experts, vector
from llmbench.spec.huggingface.families.dense import HEAD_NORM, llama
from llmbench.spec.huggingface.families.mixture import TOPK_SOFTMAX
from llmbench.spec.huggingface.families.shared_moe import mtp_of
from llmbench.spec.huggingface.parts import activation, attention, block, decoder, gated, moe, norm, rope
from llmbench.spec.model import Embedding, Head, ModelSpec


@family("bailing_moe", "bailing_moe_v2")
def bailing_moe(c: Config) -> ModelSpec:
    """Ling and Ring: one fused q/k/v matrix, small experts with shared ones; from 2.0 on with qk-norm, a
    sigmoid router and its stored correction."""
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
    no_effect(
        c,
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
    layers = arrange(mixer, sparse, ffn, None if all(sparse) else gated(c, bias=False))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim),
        next_token_prediction=mtp_of(c.count("num_nextn_predict_layers"), list(layers)),
    )


@family("grok-1")
def grok1(c: Config) -> ModelSpec:
    """Grok-1: norms before and after, 2 of 8 experts, scores and logits bounded or scaled."""
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


@family("arctic")
def arctic(c: Config) -> ModelSpec:
    """Snowflake Arctic: 2 of 128 experts beside a dense feed-forward as wide as the hidden state, with its
    own norm."""
    hidden, every = c.size("hidden_size"), c.size("moe_layer_frequency", 1)
    mixer = attention(c, sliding_window=c.window())
    width, act = c.size("intermediate_size"), activation(c)
    residual = c.flag("use_residual", True) and c.flag("parallel_attn_mlp_res", True)
    if not residual:
        c.doubt("use_residual or parallel_attn_mlp_res = False is not understood")
    ffn = MoE(
        num_experts=c.size("num_local_experts"),
        num_experts_per_tok=c.size("num_experts_per_tok"),
        intermediate_size=width,
        activation=act,
        router=TOPK_SOFTMAX,
        beside=Gated(intermediate_size=hidden, activation=act) if residual else None,
    )
    no_effect(
        c,
        """
        moe_eval_capacity_factor moe_train_capacity_factor moe_min_capacity moe_token_dropping
        enable_expert_tensor_parallelism enc_index num_experts_per_token max_sequence_length
        """,
    )
    sparse = [(index + 1) % every == 0 for index in range(num_layers(c))]
    own_norm = (vector("ffn.residual_norm", "norms", hidden),) if residual else ()
    layers = arrange(mixer, sparse, ffn, Gated(intermediate_size=width, activation=act), sparse_extra=own_norm)
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("xverse")
def xverse(c: Config) -> ModelSpec:
    """XVERSE: LLaMA's shapes; the mixture has 6 of 64 small experts and two shared ones."""
    if "num_experts" not in c:
        return llama(c)
    width = c.size("intermediate_size")
    mixer = attention(c)
    c.inexact("whether the weights of XVERSE's experts are made to sum to one")
    ffn = MoE(
        num_experts=c.size("num_experts"),
        num_experts_per_tok=c.size("moe_top_k"),
        intermediate_size=width,
        activation=activation(c),
        shared=shared_experts(c, "num_shared_experts", width),
    )
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))
