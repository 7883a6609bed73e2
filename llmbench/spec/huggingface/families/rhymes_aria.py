"""Importer for Rhymes AI's Aria."""

from __future__ import annotations

from llmbench.spec.ffn import MoE
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    TOPK_SOFTMAX,
    activation,
    attention,
    block,
    decoder,
    norm,
    shared_experts,
)
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec


@family("aria_text", "aria_moe_lm")
def aria(c: Config) -> ModelSpec:
    """Aria is Llama with routed and shared experts. Only the shared experts can have biases."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    width = c.size("intermediate_size")
    ffn = MoE(
        num_experts=c.size("moe_num_experts"),
        num_experts_per_tok=c.size("moe_topk"),
        intermediate_size=width,
        activation=activation(c),
        router=TOPK_SOFTMAX,
        shared=shared_experts(c, "moe_num_shared_experts", width, bias=c.flag("mlp_bias")),
    )
    if ffn.activation != "silu":
        c.unbuildable(f"hidden_act = `{ffn.activation}`: the routed experts of Aria always use SiLU")
    c.ignore("moe_intermediate_size", "moe_z_loss_coeff", "moe_aux_loss_coeff")
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))
