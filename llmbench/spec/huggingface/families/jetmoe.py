"""Importer for JetMoE."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    TOPK_SOFTMAX,
    activation,
    attention,
    block,
    decoder,
    matrix,
    moe,
    norm,
    rope,
    vector,
)
from llmbench.spec.model import ExtraWeight, ModelSpec


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
        """
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
