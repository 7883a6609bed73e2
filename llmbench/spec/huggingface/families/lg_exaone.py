"""Importers for EXAONE 3 and 4 and K-EXAONE by LG AI Research."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    attention,
    block,
    decoder,
    deepseek_router,
    gated,
    head_dim_of,
    mixture_layers,
    moe,
    norm,
    prediction_modules,
    shared_experts,
)
from llmbench.spec.huggingface.families.llama import llama_from_hub
from llmbench.spec.huggingface.layer_lists import layer_types, num_layers, sparse_layers, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.model import ModelSpec
from llmbench.spec.position import NoPositions


@family("exaone")
def exaone(c: Config) -> ModelSpec:
    """EXAONE 3 has Llama's architecture. Some of its config keys have other names."""
    if "tie_word_embeddings" not in c:
        c.doubt("tie_word_embeddings is missing; the head is counted as not tied")
    return llama_from_hub(c)


@family("exaone4")
def exaone4(c: Config) -> ModelSpec:
    """EXAONE 4 has norms on the outputs of sublayers, and norms on q and k.

    In models with windows, every fourth layer has full attention without position encoding. The other layers have RoPE
    and a sliding window.
    """
    window = c.window()
    count = num_layers(c)
    pattern = c.get("sliding_window_pattern")
    spelled = isinstance(pattern, str)  # with a string like "LLLG", the last layer never has a window
    every = max(1, len(pattern) if spelled else pattern if isinstance(pattern, int) else 4)
    derived = [
        "sliding_attention" if window and (i + 1) % every and not (spelled and i == count - 1) else "full_attention"
        for i in range(count)
    ]
    kinds = layer_types(c, derived)
    ffn = gated(c, bias=False)
    layers = [
        ("local", block(attention(c, qk_norm=HEAD_NORM, sliding_window=window), ffn, "output"))
        if kind == "sliding_attention"
        else (
            "global",
            block(attention(c, qk_norm=HEAD_NORM, positions=NoPositions() if window else None), ffn, "output"),
        )
        for kind in kinds
    ]
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=head_dim_of(c)))


@family("exaone_moe")
def exaone_moe(c: Config) -> ModelSpec:
    """K-EXAONE has EXAONE 4's attention, DeepSeek's experts, and norms before the sublayers."""
    window = c.window()
    pattern = c.get("sliding_window_pattern")
    every = len(pattern) if isinstance(pattern, str) else pattern if isinstance(pattern, int) and window else 0
    last = pattern[-1:] if isinstance(pattern, str) else "G"
    if last not in ("G", "g"):
        c.doubt(f"config key sliding_window_pattern = {pattern!r} is not understood; it must end with G")
    local = windowed_layers(c, lambda index: every > 0 and (index + 1) % every != 0)
    # As in EXAONE 4: in a model with windows, only the layers with a window have RoPE. Otherwise all layers have RoPE.
    mixers = [
        ("local", attention(c, qk_norm=HEAD_NORM, sliding_window=window))
        if windowed
        else ("global", attention(c, qk_norm=HEAD_NORM, positions=NoPositions() if window else None))
        for windowed in local
    ]
    width = c.size("moe_intermediate_size")
    ffn = moe(c, router=deepseek_router(c), shared=shared_experts(c, "num_shared_experts", width))
    c.ignore("scoring_func", "topk_method", "first_last_k_dense_replace")
    flags, first = c.entries("is_moe_layer", num_layers(c)), c.count("first_k_dense_replace")
    sparse = sparse_layers(c, lambda index: bool(flags[index]) if flags else index >= first)
    layers = mixture_layers(mixers, sparse, ffn, gated(c, bias=False))
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim_of(c)),
        next_token_prediction=prediction_modules(c.count("num_nextn_predict_layers"), list(layers)),
    )
