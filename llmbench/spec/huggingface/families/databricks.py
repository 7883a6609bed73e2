"""Importers for MPT and DBRX by Databricks (MosaicML)."""

from __future__ import annotations

from llmbench.spec.ffn import MoE, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, dense, expect_divisible_heads, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import Alibi, Rope


@family("mpt")
def mpt(c: Config) -> ModelSpec:
    """MPT has ALiBi. It has no biases, and its LayerNorms have none either. A few MPT models have grouped-query
    attention."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    inner = c.sub("attn_config")
    kv_heads = 1 if inner.text("attn_type") == "multiquery_attention" else inner.size("kv_n_heads", heads)
    if kv_heads != heads:
        c.doubt(f"attn_config states {kv_heads} key-value heads, but transformers builds MPT with {heads}")
    inner.require("qk_ln", False)
    inner.ignore(
        "attn_impl",
        "attn_pdrop",
        "prefix_lm",
        "attn_uses_sequence_id",
        "rope",
        "rope_theta",
        "rope_impl",
        "sliding_window_size",
    )
    c.require("no_bias", True)
    c.require("norm_type", "low_precision_layernorm", "layer_norm", "layernorm")
    c.ignore(
        "learned_pos_emb",
        "logit_scale",
        "verbose",
        "init_device",
        "embedding_fraction",
        "ffn_config",
        "fc_type",
        "init_config",
        "tokenizer_name",
        "use_cache",
        "init_div_is_residual",
    )
    ratio = c.size("expansion_ratio", 4)
    if ratio != 4:
        c.doubt(f"expansion_ratio = {ratio}: transformers builds MPT's feed-forwards with the width 4 × hidden_size")
    if hidden % heads:
        c.doubt(f"hidden_size {hidden} is not divisible by num_attention_heads {heads}")
    inner.require("alibi_bias_max", 8)
    if c.get("max_seq_len") == 1:
        c.unbuildable("max_seq_len = 1: transformers then sets all distances of ALiBi to zero")
    mixer = attention(
        c,
        num_key_value_heads=kv_heads,
        head_dim=hidden // heads,
        clip_qkv=inner.optional_number("clip_qkv") or None,
        scale=inner.optional_number("softmax_scale"),
    )
    if not inner.flag("alibi", True):
        c.doubt("attn_config.alibi = False: the parameters of the learned positions are not counted")
    inner.doubt_unread()
    return decoder(
        c,
        block(mixer, dense(c, bias=False, width=c.size("expansion_ratio", 4) * hidden, keys=("hidden_act",))),
        norm=norm(c, "layernorm", bias=False),
        positions=Alibi(),
    )


@family("dbrx")
def dbrx(c: Config) -> ModelSpec:
    """DBRX has 4 of 16 experts, and LayerNorms without biases.

    The objects `attn_config` and `ffn_config` in its config contain the dimensions.
    """
    inner, ffn = c.sub("attn_config"), c.sub("ffn_config")
    heads, hidden = c.size("num_attention_heads"), c.size("hidden_size")
    mixer = attention(
        c,
        num_key_value_heads=inner.size("kv_n_heads", heads),
        head_dim=hidden // heads,
        clip_qkv=inner.optional_number("clip_qkv"),
    )
    inner.ignore("attn_pdrop")
    c.ignore("num_key_value_heads")  # in newer configs, a copy of attn_config.kv_n_heads
    act = ffn.sub("ffn_act_fn").text("name", "silu")
    ffn.ignore("uniform_expert_assignment", "hidden_size")
    power = ffn.get("moe_normalize_expert_weights")
    if power not in (None, 1, 1.0):
        ffn.unbuildable(f"moe_normalize_expert_weights = {power!r}: only 1 (weights sum to one) and null are supported")
    experts = MoE(
        num_experts=ffn.size("moe_num_experts"),
        num_experts_per_tok=ffn.size("moe_top_k"),
        intermediate_size=ffn.size("ffn_hidden_size"),
        activation="silu" if act == "silu" else "gelu",
        router=Router(normalize=power is not None),
    )
    theta = inner.number("rope_theta", 10000.0)
    inner.doubt_unread()
    ffn.doubt_unread()
    expect_divisible_heads(c)
    positions = rope(c, head_dim=mixer.head_dim)
    if not c.table("rope_parameters"):  # transformers reads rope_parameters, which older configs do not have
        positions = Rope(theta=theta)
        c.unbuildable("transformers ignores attn_config.rope_theta of DBRX: its class reads rope_parameters")
    return decoder(c, block(mixer, experts), norm=norm(c, "layernorm", bias=False), positions=positions)
