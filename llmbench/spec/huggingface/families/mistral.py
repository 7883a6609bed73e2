"""Importers for Mistral, Ministral and Mixtral by Mistral AI."""

from __future__ import annotations

from msgspec.structs import replace

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    TOPK_SOFTMAX,
    attention,
    block,
    decoder,
    gated,
    latent_attention,
    mixture_layers,
    moe,
    norm,
    vector,
)
from llmbench.spec.huggingface.families.deepseek import deepseek_ffn, deepseek_v3, indexer_of, shared_indexers
from llmbench.spec.huggingface.families.llama import llama_with_windows
from llmbench.spec.huggingface.layer_lists import num_layers, sparse_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Temperature
from llmbench.spec.model import ExtraWeight, Head, Layer, ModelSpec
from llmbench.spec.position import NoPositions

MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
"""The default RoPE of Ministral 3 in transformers, for configs without rope_parameters and rope_scaling."""


@family("mistral", "ministral3")
def mistral(c: Config) -> ModelSpec:
    """In Mistral 7B and later models, all layers have the same sliding window, or no layer has a window.

    In Ministral 3, the queries have a factor that grows with the position.
    """
    if c.model_type == "ministral3" and not c.table("rope_parameters") and not c.table("rope_scaling"):
        c.put("rope_parameters", MINISTRAL3_ROPE)
    rotation = c.table("rope_parameters") or c.table("rope_scaling")
    beta, every = rotation.get("llama_4_scaling_beta"), rotation.get("original_max_position_embeddings")
    temperature = None
    if c.model_type == "ministral3" and isinstance(beta, (int, float)) and type(every) is int:
        temperature = Temperature(scale=float(beta), every=every)
    mixer = attention(c, sliding_window=c.window(), temperature=temperature)
    return decoder(c, block(mixer, gated(c, bias=False)), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("ministral")
def ministral(c: Config) -> ModelSpec:
    """In Ministral, all layers have the same sliding window, or no layer has a window."""
    window = c.window()
    return llama_with_windows(c, ["sliding_attention" if window else "full_attention"] * num_layers(c), window)


@family("mixtral")
def mixtral(c: Config) -> ModelSpec:
    """Mixtral is Mistral with experts in all layers."""
    mixer = attention(c, sliding_window=c.window())
    ffn = moe(c, experts="num_local_experts", width="intermediate_size", router=TOPK_SOFTMAX)
    return decoder(c, block(mixer, ffn), norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("mistral4")
def mistral4(c: Config) -> ModelSpec:
    """Mistral 4 is DeepSeek-V3 with a softmax router. The router has no bias for load balancing."""
    return deepseek_v3(c, scores="softmax", correction=None)


@family("voxtral_realtime_text")
def voxtral_realtime(c: Config) -> ModelSpec:
    """The language model of Voxtral Realtime is Mistral with a factor per channel before each feed-forward.

    Two small matrices compute the factor from the delay of the transcription, once per layer and forward pass.
    """
    hidden, narrow = c.size("hidden_size"), 32
    factor = ExtraWeight(name="ffn_norm.adaptive", shape=(2 * narrow, hidden), role="vector")
    mixer = attention(c, sliding_window=c.window())
    layer = block(mixer, gated(c, bias=False), extra=(factor,))
    return decoder(c, layer, norm=norm(c), positions=rope(c, head_dim=mixer.head_dim))


@family("mistral_large4_text")
def mistral_large4(c: Config) -> ModelSpec:
    """Mistral Large 4 has indexed latent attention with full-rank queries, and a scale of the softmax per head.

    Every fourth layer has no positions.
    """
    count, hidden = num_layers(c), c.size("hidden_size")
    every = c.size("no_rope_layer_interval", 4)
    rotates = c.entries("no_rope_layers", count) or [int((index + 1) % every != 0) for index in range(count)]
    sources = c.entries("kv_source_layers", count) or list(range(count))
    if sources != list(range(count)):
        c.doubt("kv_source_layers: llmbench counts keys and values of each layer, but some layers share them")
    c.unbuildable("the scales of the softmax, and the frequencies that the model stores, are unsupported")
    c.ignore("head_dim qk_head_dim layer_types")
    if c.get("num_experts") is not None:
        c.put("n_routed_experts", c.get("num_experts"))
    scale = vector("attention.softmax_scale", "attention_extra", 2, c.size("num_attention_heads"))
    of_indexer = (
        vector("attention.indexer.q_norm", "attention_extra", 2, hidden),
        vector("attention.indexer.softmax_scale", "attention_extra", 2, c.size("index_n_heads")),
    )
    nope, turned = c.size("qk_nope_head_dim"), c.size("qk_rope_head_dim")
    ffn, dense = deepseek_ffn(c, scores="softmax", correction=None), gated(c, bias=False)
    first = c.count("first_k_dense_replace")
    sparse = sparse_layers(c, lambda index: index >= first)
    layers: list[tuple[str, Layer]] = []
    for has_rope, shared, has_experts in zip(rotates, shared_indexers(c), sparse, strict=True):
        mixer = latent_attention(c, indexer=indexer_of(c, shared=shared))
        if not has_rope:  # the same queries, without a rotated part
            mixer = replace(mixer, qk_nope_head_dim=nope + turned, qk_rope_head_dim=0, positions=NoPositions())
        name = ("global" if has_rope else "without_rope") + ("_shared" if shared else "")
        extra = (scale,) if shared else (scale, *of_indexer)
        layers += mixture_layers([(name, mixer)], [has_experts], ffn, dense, extra=extra)
    stored = ExtraWeight(name="rotary_scales", shape=(turned // 2,), role="buffer")
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=turned, interleaved=True),
        head=Head(soft_cap=c.optional_number("final_logit_softcapping")),
        extra=(stored,),
    )
