"""Importer for Naver's HyperCLOVA X."""

from __future__ import annotations

import msgspec

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import attention, block, gated, head_dim_of
from llmbench.spec.huggingface.families.ibm_granite import granite_model
from llmbench.spec.model import Head, ModelSpec, Placement


@family("hyperclovax")
def hyperclovax(c: Config) -> ModelSpec:
    """HyperCLOVA X has Granite's constant factors. If `use_post_norm` is true, norms stand before and after each
    sublayer."""
    bias = c.flag("attention_bias")
    scale = c.optional_number("attention_multiplier")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, scale=None if scale == head_dim_of(c) ** -0.5 else scale)
    c.ignore("end_token_id")
    placement: Placement = "sandwich" if c.flag("use_post_norm", True) else "pre"
    layer = block(mixer, gated(c), placement, residual_scale=c.number("residual_multiplier", 1.0))
    # Granite divides the logits by logits_scaling. HyperCLOVA X multiplies the logits by logits_scaling.
    spec = granite_model(c, layer, mixer.head_dim)
    return msgspec.structs.replace(spec, head=Head(scale=c.number("logits_scaling", 1.0)))
