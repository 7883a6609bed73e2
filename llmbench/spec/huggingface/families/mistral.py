"""Importers for Mistral, Ministral and Mixtral by Mistral AI."""

from __future__ import annotations

from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    TOPK_SOFTMAX,
    attention,
    block,
    decoder,
    gated,
    moe,
    norm,
    num_layers,
    rope,
)
from llmbench.spec.huggingface.families.deepseek import deepseek_v3
from llmbench.spec.huggingface.families.llama import llama_with_windows
from llmbench.spec.mixer import Temperature
from llmbench.spec.model import ExtraWeight, ModelSpec

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
