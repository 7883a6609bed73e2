"""Importers for MiMo by Xiaomi."""

from __future__ import annotations

from msgspec.structs import replace

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    attention,
    decoder,
    deepseek_router,
    gated,
    head_dim_of,
    mixture_layers,
    moe,
    norm,
    shared_experts,
)
from llmbench.spec.huggingface.families.qwen import qwen_dense
from llmbench.spec.huggingface.layer_lists import num_layers, sparse_layers, windowed_layers
from llmbench.spec.huggingface.rotation import expect_stated_rotation, rope
from llmbench.spec.model import ModelSpec, NextTokenPrediction
from llmbench.spec.position import Rope


@family("mimo")
def mimo(c: Config) -> ModelSpec:
    """MiMo 7B has Qwen2's architecture, and a multi-token-prediction module."""
    spec = qwen_dense(c, qkv_bias=c.flag("attention_bias", True))
    count = c.count("num_nextn_predict_layers")
    modules = NextTokenPrediction(count=count, layer=spec.order[-1], files="own") if count else None
    return replace(spec, next_token_prediction=modules)


@family("mimo_v2_flash")
def mimo_v2(c: Config) -> ModelSpec:
    """MiMo-V2-Flash has key heads of width 192 and value heads of width 128. Five of six layers have a sliding window.

    Layers with a window have attention sinks, and another number of heads than layers with full attention.
    """
    count = num_layers(c)
    bias = c.flag("attention_bias")
    pattern = c.entries("hybrid_layer_pattern", count)
    windowed = windowed_layers(c, lambda index: bool(pattern[index]) if pattern else index > 0 and (index + 1) % 6 != 0)
    frequency = c.entries("moe_layer_freq", count)
    sparse = sparse_layers(c, lambda index: bool(frequency[index]) if frequency else index > 0)
    window, other_window = c.window(), c.optional_size("sliding_window_size")
    if other_window is not None and window == other_window:
        # The config on the hub has sliding_window and sliding_window_size. llmbench uses sliding_window, which includes
        # the query's own key. transformers can use sliding_window_size, which does not include the query's own key.
        c.unbuildable(
            f"sliding_window {window} includes the query's own key, but sliding_window_size {other_window} does not"
        )
    elif other_window is not None:
        window = other_window + 1
    c.ignore("attention_chunk_size swa_rope_theta topk_method scoring_func")
    expect_stated_rotation(c)
    positions, near_positions = (_mimo_rope(c, kind) for kind in ("full_attention", "sliding_attention"))
    value_scale = c.optional_number("attention_value_scale")
    full = attention(
        c,
        v_head_dim=c.optional_size("v_head_dim"),
        value_scale=value_scale,
        qkv_bias=bias,
        sinks=c.flag("add_full_attention_sink_bias"),
    )
    local = attention(
        c,
        num_attention_heads=c.size("swa_num_attention_heads", full.num_attention_heads),
        num_key_value_heads=c.size("swa_num_key_value_heads", 2 * full.num_key_value_heads),
        head_dim=c.size("swa_head_dim", full.head_dim),
        v_head_dim=c.optional_size("swa_v_head_dim") or full.v_head_dim,
        qkv_bias=bias,
        sliding_window=window,
        sinks=c.flag("add_swa_attention_sink_bias", True),
        value_scale=value_scale,
        positions=near_positions,
    )
    shared = shared_experts(c, "n_shared_experts", c.size("moe_intermediate_size"))
    ffn = moe(c, experts="n_routed_experts", router=deepseek_router(c), shared=shared)
    mixers = [("local", local) if is_local else ("global", full) for is_local in windowed]
    layers = mixture_layers(mixers, sparse, ffn, gated(c, bias=False))
    return decoder(c, layers, norm=norm(c), positions=positions)


def _mimo_rope(c: Config, kind: str) -> Rope:
    """Return the RoPE of a layer type.

    If the config does not state the rotated share of a head, the share depends on the scaling of RoPE. A scaled RoPE
    rotates the whole head, and a RoPE without scaling rotates a third of it.
    """
    whole = rope(c, head_dim=head_dim_of(c), layer_type=kind)
    return whole if whole.scaling else rope(c, head_dim=head_dim_of(c), layer_type=kind, partial=0.334)
