"""Importer for StableLM by Stability AI."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, decoder, gated, norm
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import ModelSpec, Placement


@family("stablelm", "stablelm_epoch")
def stablelm(c: Config) -> ModelSpec:
    """StableLM has LayerNorms with biases. RoPE rotates a part of each head.

    Config keys can add biases on q, k and v, norms on q and k, and parallel sublayers.
    """
    qk_norm = QKNorm(over="per_head", norm="layernorm") if c.flag("qk_layernorm") else None
    c.ignore("num_heads", "rotary_scaling_factor")
    mixer = attention(c, qkv_bias=c.flag("use_qkv_bias"), qk_norm=qk_norm)
    placement: Placement = "parallel" if c.flag("use_parallel_residual") else "pre"
    return decoder(
        c,
        block(mixer, gated(c, bias=False), placement),
        norm=norm(c, "layernorm"),
        positions=rope(c, head_dim=mixer.head_dim, partial=0.25),
    )
