"""Importers for dots.llm1 and dots3 by rednote."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    attention,
    decoder,
    deepseek_router,
    gated,
    head_dim_of,
    latent_attention,
    matrix,
    mixture_layers,
    moe,
    norm,
    shared_experts,
    vector,
)
from llmbench.spec.huggingface.families.deepseek import deepseek_ffn, indexed_attention
from llmbench.spec.huggingface.layer_lists import num_layers, sparse_after_first, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec


@family("dots1")
def dots1(c: Config) -> ModelSpec:
    """dots.llm1 has Qwen3's attention and DeepSeek's experts.

    All layers after the first `max_window_layers` layers have a sliding window.
    """
    bias = c.flag("attention_bias")
    window, first = c.window(), c.count("max_window_layers")
    common = {"qkv_bias": bias, "output_bias": bias, "qk_norm": HEAD_NORM}
    local = windowed_layers(c, lambda index: window is not None and index >= first)
    mixers = [
        ("local" if windowed else "", attention(c, sliding_window=window if windowed else None, **common))
        for windowed in local
    ]
    sparse = sparse_after_first(c)
    c.ignore("intermediate_size")
    layers = mixture_layers(mixers, sparse, deepseek_ffn(c), None if all(sparse) else gated(c, bias=False))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


_LOCAL_SIZES = {
    "num_attention_heads": 64,
    "q_lora_rank": 1024,
    "kv_lora_rank": 1024,
    "head_dim": 256,
    "qk_nope_head_dim": 192,
    "v_head_dim": 128,
}
"""The sizes of dots3's attention in layers with a sliding window, if the config does not state them."""


@family("dots3_note_text")
def dots3_note(c: Config) -> ModelSpec:
    """All layers of dots3 have latent attention with a norm on the rotated key and an output gate per head.

    Layers without a sliding window can have an indexer. Layers with a window have narrower latents and no indexer.
    """
    count, hidden = num_layers(c), c.size("hidden_size")
    stated = c.entries("layer_types", count)
    windows = c.flag("use_sliding_window", True)
    derived = ["full_attention" if not windows or i < 2 or i % 4 == 1 else "sliding_attention" for i in range(count)]
    kinds = [str(kind) for kind in stated or derived]
    sparse_attention = c.get("use_dsa")
    if sparse_attention is None and "per_layer_config" not in c:
        sparse_attention = True
    if sparse_attention is not None:
        kinds = [kind if kind == "sliding_attention" else "indexed" if sparse_attention else "full" for kind in kinds]
    window = c.window() or c.size("sliding_window_size", 512)
    c.put("head_dim", None)  # it only says which share of it is qk_rope_head_dim
    full = latent_attention(c)
    if full.q_lora_rank is None:
        raise c.error("q_lora_rank", "must be a whole number of at least 1")
    of_local = {key: c.size(f"swa_{key}", usual) for key, usual in _LOCAL_SIZES.items()}
    of_local["qk_rope_head_dim"] = c.count("swa_qk_rope_head_dim", of_local["head_dim"] - of_local["qk_nope_head_dim"])
    c.ignore("swa_num_key_value_heads", "swa_rope_theta", "head_dim", "mlp_bias")
    width = c.size("shared_experts_intermediate_size", 1536)
    width = c.size("moe_shared_expert_intermediate_size", width)
    shared = shared_experts(c, "n_shared_experts", width)
    ffn = moe(c, experts="n_routed_experts", router=deepseek_router(c), shared=shared)
    dense = gated(c, bias=False)
    layers = []
    for index, (kind, sparse) in enumerate(zip(kinds, sparse_after_first(c, 1), strict=True)):
        local = kind == "sliding_attention"
        own, name = c.layer(index, of_local if local else {}), "local" if local else "global"
        own.put("head_dim", None)
        if local:
            mixer = latent_attention(own, sliding_window=window)
        else:
            mixer = indexed_attention(own) if kind in ("indexed", "indexed_attention") else latent_attention(own)
        own.doubt_unread()
        extra = (
            vector("attention.k_rope_norm", "attention_norms", mixer.qk_rope_head_dim),
            matrix("attention.g_proj", "attention", mixer.num_attention_heads, hidden),
        )
        layers += mixture_layers([(name, mixer)], [sparse], ffn, dense, extra=extra)
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=full.qk_rope_head_dim, interleaved=True))
