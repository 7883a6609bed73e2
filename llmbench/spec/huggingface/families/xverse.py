"""Importer for XVERSE's models."""

from __future__ import annotations

from llmbench.spec.ffn import MoE
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import activation, attention, block, decoder, norm, shared_experts
from llmbench.spec.huggingface.families.llama import llama
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec


@family("xverse")
def xverse(c: Config) -> ModelSpec:
    """XVERSE has Llama's architecture. XVERSE-MoE has 6 of 64 small experts and two shared experts."""
    if "num_experts" not in c:
        return llama(c)
    width = c.size("intermediate_size")
    mixer = attention(c)
    c.unbuildable("no config key of XVERSE says whether the router divides expert weights by their sum")
    ffn = MoE(
        num_experts=c.size("num_experts"),
        num_experts_per_tok=c.size("moe_top_k"),
        intermediate_size=width,
        activation=activation(c),
        shared=shared_experts(c, "num_shared_experts", width),
    )
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))
