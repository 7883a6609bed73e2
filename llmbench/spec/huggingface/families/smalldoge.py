"""Importer for SmallDoge's Doge."""

from __future__ import annotations

from llmbench.errors import UnsupportedError
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import HEAD_NORM, attention, block, decoder, gated, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ExtraWeight, ModelSpec


@family("doge")
def doge(c: Config) -> ModelSpec:
    """Doge has norms on q and k, and a trained scale on each residual sum. Its attention mask is computed from the
    values."""
    if c.flag("is_moe"):
        raise UnsupportedError("config is_moe = true: Doge's cross-domain experts are not supported")
    bias = c.flag("attention_bias")
    c.ignore("keep_window_size", "num_experts", "num_experts_per_tok", "norm_topk_prob", "expert_retrieval_size")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, qk_norm=HEAD_NORM, sliding_window=c.window())
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
