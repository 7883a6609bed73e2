"""Importer for Meituan's LongCat."""

from __future__ import annotations

from llmbench.spec.ffn import MoE, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import activation, block, decoder, gated, latent_attention, norm
from llmbench.spec.huggingface.layer_lists import MOST_LAYERS
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import Layer, ModelSpec


@family("longcat_flash")
def longcat_flash(c: Config) -> ModelSpec:
    """LongCat-Flash has pairs of layers. Each layer has latent attention and a dense feed-forward.

    In the first layer of a pair, experts run parallel to the dense feed-forward. Some of these experts are zero
    experts, which compute nothing.
    """
    count = (
        c.size("num_layers") if "num_layers" in c or "num_hidden_layers" not in c else c.size("num_hidden_layers") // 2
    )
    c.ignore("num_layers", "num_hidden_layers")
    c.put("num_hidden_layers", 2 * min(count, MOST_LAYERS + 1))
    mixer = latent_attention(c)
    dense = gated(c, bias=False)
    zero = c.count("zero_expert_num")
    c.ignore("zero_expert_type", "mla_scale_q_lora", "mla_scale_kv_lora", "attention_method", "router_dtype")
    c.unbuildable("mla_scale_q_lora and mla_scale_kv_lora: factors on the latents are not supported")
    experts = MoE(
        num_experts=c.size("n_routed_experts"),
        num_experts_per_tok=c.size("num_experts_per_tok"),
        intermediate_size=c.size("moe_intermediate_size"),
        activation=activation(c),
        router=Router(correction="buffer", bias=c.flag("router_bias"), scale=c.number("routed_scaling_factor", 1.0)),
        beside=dense,
        zero_experts=zero,
    )
    if zero:
        c.doubt(
            f"llmbench counts FLOPs of {experts.num_experts_per_tok} experts per token, but a token can select some of"
            f" the {zero} experts that compute nothing. The published files have no matrices of these experts, for"
            " which transformers allocates some"
        )
    layers: list[tuple[str, Layer]] = [("moe", block(mixer, experts)), ("dense", block(mixer, dense))] * count
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=mixer.qk_rope_head_dim, interleaved=True))
