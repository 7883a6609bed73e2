"""Models with multi-head latent attention."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.mixture import deepseek_experts
from llmbench.spec.huggingface.parts import latent_attention
from llmbench.spec.mixer import Indexer
from llmbench.spec.model import ModelSpec


@family("deepseek_v2")
def deepseek_v2(c: Config) -> ModelSpec:
    """DeepSeek-V2 and V2-Lite: softmax router limited to groups, no correction."""
    mixer = latent_attention(c)
    bias = c.flag("mlp_bias")
    return deepseek_experts(
        c, mixer, norm_kind="rmsnorm", head_dim=mixer.qk_rope_head_dim, scores="softmax", correction=None, interleaved=True, bias=bias
    )


@family("deepseek_v3", "kimi_k2", "glm4_moe_lite")
def deepseek_v3(c: Config) -> ModelSpec:
    """DeepSeek-V3 and R1, Kimi-K2, GLM-4.7-Flash: sigmoid router with a stored correction."""
    mixer = latent_attention(c)
    return deepseek_experts(c, mixer, norm_kind="rmsnorm", head_dim=mixer.qk_rope_head_dim, interleaved=True)


@family("deepseek_v32", "glm_moe_dsa")
def deepseek_v32(c: Config) -> ModelSpec:
    """DeepSeek-V3.2: V3 with an indexer that chooses the keys."""
    indexer = Indexer(
        num_heads=c.size("index_n_heads"), head_dim=c.size("index_head_dim"), top_k=c.size("index_topk")
    )
    mixer = latent_attention(c, indexer=indexer)
    return deepseek_experts(c, mixer, norm_kind="rmsnorm", head_dim=mixer.qk_rope_head_dim, interleaved=True)
