"""Importer for Step 3.5 by StepFun."""

from __future__ import annotations

import re

from llmbench.spec.ffn import MoE, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    SIGMOID,
    activation,
    attention,
    decoder,
    gated,
    mixture_layers,
    norm,
    prediction_modules,
)
from llmbench.spec.huggingface.layer_lists import num_layers, sparse_layers, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec


@family("step3p5")
def step3p5(c: Config) -> ModelSpec:
    """Step 3.5 has attention with an output gate per head. By default, its first three layers are dense.

    Layers with a sliding window can have another number of query heads than layers with full attention.
    """
    count = num_layers(c)
    mtp = c.count("num_nextn_predict_layers")
    for key in (
        "layer_types",
        "mlp_layer_types",
    ):  # the list can also have entries for the multi-token-prediction modules
        entries = c.get(key)
        if isinstance(entries, list) and len(entries) == count + mtp:
            c.put(key, entries[:count])
    bias = c.flag("attention_bias")
    local_setting = c.table("attention_other_setting")
    local_heads = c.optional_size("num_sliding_attention_heads") or local_setting.get("num_attention_heads")
    if local_setting and (local_setting.get("num_attention_groups"), local_setting.get("head_dim")) not in (
        (None, None),
        (c.size("num_key_value_heads"), c.size("head_dim")),
    ):
        c.doubt("attention_other_setting with other key-value heads or another head_dim is not understood")
    gate = c.flag("use_head_wise_attn_gate", True) and c.get("gating") in (None, True, "per-head")
    if not gate:
        c.doubt("use_head_wise_attn_gate or gating is not understood; only an output gate per head is supported")
    c.require("use_moe", True)
    c.require("use_moe_router_bias", True)
    c.require("sink", False)
    window = c.window()
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM, "output_gate": "headwise"}
    full = attention(c, **common)
    heads = local_heads if type(local_heads) is int and local_heads > 0 else full.num_attention_heads
    local = attention(c, num_attention_heads=heads, sliding_window=window, **common)
    mixers = [
        ("local", local) if windowed else ("global", full) for windowed in windowed_layers(c, lambda index: False)
    ]
    listed = c.get("moe_layers_enum")
    names = listed.split(",") if isinstance(listed, str) else listed if isinstance(listed, list) else None
    chosen = (
        set(range(3, count))
        if names is None
        else {int(name) for name in names if re.fullmatch(r"\s*[0-9]{1,9}\s*", str(name))}
    )
    keys = ("moe_num_experts", "n_routed_experts", "num_local_experts")
    experts = next((c.size(key) for key in keys if key in c), 288)
    mlp_bias = c.flag("mlp_bias")
    ffn = MoE(
        num_experts=experts,
        num_experts_per_tok=c.size("num_experts_per_tok"),
        intermediate_size=c.size("moe_intermediate_size"),
        activation=activation(c),
        router=SIGMOID,
        shared=SharedExperts(intermediate_size=c.size("share_expert_dim"), bias=mlp_bias),
    )
    if c.spells("num_local_experts") and not any(map(c.spells, keys[:2])):
        c.doubt("transformers ignores num_local_experts of Step 3.5: its class reads moe_num_experts")
    c.ignore(*keys)
    c.ignore(
        """
        swiglu_limits swiglu_limits_shared query_pre_attn_scalar moe_router_scaling_factor
        partial_rotary_factors yarn_only_types zero_centered need_fp32_gate norm_expert_weight
        moe_router_activation moe_every_n_layer moe_layer_offset att_impl_type use_qk_norm
        mtp_layer_types mtp_mlp_layer_types use_rope_layers use_head_wise_attn_gate gating
        moe_layers_enum
        """,
    )
    c.unbuildable("swiglu_limits, query_pre_attn_scalar and the RoPE per layer of Step 3.5 are not supported")
    sparse = sparse_layers(c, lambda index: index in chosen)
    layers = mixture_layers(mixers, sparse, ffn, gated(c, bias=mlp_bias))
    return decoder(
        c,
        layers,
        norm=norm(c, unit_offset=True),
        positions=rope(c, head_dim=full.head_dim),
        next_token_prediction=prediction_modules(mtp, list(layers)),
    )
