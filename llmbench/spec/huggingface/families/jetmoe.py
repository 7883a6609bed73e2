"""Importer for JetMoE."""

from __future__ import annotations

from msgspec.structs import replace

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import TOPK_SOFTMAX, activation, attention, block, decoder, moe, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec


@family("jetmoe")
def jetmoe(c: Config) -> ModelSpec:
    """JetMoE has experts in the feed-forward and in attention. Attention experts are query and output projections.

    A token uses the query heads of the attention experts that the router selects for it.
    """
    kv_heads, head_dim = c.size("num_key_value_heads"), c.size("head_dim")
    chosen, experts = c.size("num_experts_per_tok"), c.size("num_local_experts")
    c.ignore(
        """
        num_attention_heads glu moe_num_experts moe_top_k layer_norm_eps applied_layernorm_type
        aux_loss_coef bias rotary_percent rope_percent
        """
    )
    mixer = attention(
        c,
        num_attention_heads=chosen * kv_heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        attention_experts=experts,
    )
    ffn = moe(
        c,
        experts="num_local_experts",
        width="intermediate_size",
        router=TOPK_SOFTMAX,
        activation=activation(c, "activation_function"),
    )
    final = norm(c)
    inner = replace(final, eps=1e-6)  # rms_norm_eps is the epsilon of the last norm only
    layer = block(mixer, replace(ffn, output_bias=True), norm=None if inner == final else inner)
    return decoder(c, layer, norm=final, positions=rope(c, head_dim=head_dim))
