"""Importers for Kimi K2, Kimi Linear and the language model of Kimi K3 by Moonshot AI."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from llmbench.spec.ffn import FFN, MoE, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    block,
    decoder,
    deepseek_router,
    gated,
    latent_attention,
    matrix,
    moe,
    norm,
    vector,
)
from llmbench.spec.huggingface.families.deepseek import deepseek_v3
from llmbench.spec.huggingface.layer_lists import linear_layer_types, num_layers
from llmbench.spec.mixer import KimiDelta, LatentAttention, Mixer
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec
from llmbench.spec.position import NoPositions

Gate = Literal["headwise", "elementwise"]


@family("kimi_k2")
def kimi_k2(c: Config) -> ModelSpec:
    """Kimi K2 has the architecture of DeepSeek-V3 and a model type of its own."""
    return deepseek_v3(c)


@family("kimi_linear")
def kimi_linear(c: Config) -> ModelSpec:
    """Kimi Linear has latent attention in every fourth layer, and delta attention in the other layers.

    The model has no position encoding. `linear_attn_config` can list the numbers of the layers of each kind. The first
    layer has the number 1. Kimi K3 adds experts in a narrower space, output gates, and sums over blocks of layers.
    """
    c.rename(
        num_experts="num_local_experts",
        num_shared_experts="n_shared_experts",
        num_expert_group="n_group",
        moe_renormalize="norm_topk_prob",
        num_experts_per_token="num_experts_per_tok",
    )
    c.ignore(
        "mla_use_nope",
        "moe_router_activation_func",
        "use_grouped_topk",
        "num_experts",
        "num_shared_experts",
        "num_expert_group",
        "moe_renormalize",
        "num_experts_per_token",
        "num_nextn_predict_layers",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "head_dim",
        "moe_layer_freq",
        "tie_word_embeddings",
    )
    if c.count("moe_layer_freq", 1) != 1:
        c.doubt(f"config key moe_layer_freq = {c.get('moe_layer_freq')} is not understood; only 1 is supported")
    own_config = c.sub("linear_attn_config")
    count = num_layers(c)
    derived = ["full_attention" if index and index % 4 == 0 else "linear_attention" for index in range(count)]
    attending, others = own_config.entries("full_attn_layers"), own_config.entries("kda_layers")
    if attending is not None and others is not None:
        derived = ["full_attention" if index + 1 in attending else "linear_attention" for index in range(count)]
        if len(attending) + len(others) != count:
            raise c.error("linear_attn_config", f"must list each of the {count} layers exactly once")
    kinds = linear_layer_types(c, derived)

    def of_kda(key: str, inner: str) -> int:
        """Return a dimension of the delta attention. The nested object has precedence over the top-level key.

        - key: the name of the key at the top level.
        - inner: the name of the key in the object linear_attn_config.
        """
        if inner in own_config:
            c.put(key, own_config.get(inner))
        return c.size(key)

    delta = KimiDelta(
        num_heads=of_kda("linear_num_heads", "num_heads"),
        head_dim=of_kda("linear_head_dim", "head_dim"),
        conv_kernel=of_kda("linear_conv_kernel_dim", "short_conv_kernel_size"),
        full_rank_gate=own_config.flag("use_full_rank_gate"),
    )
    own_config.ignore("gate_lower_bound")
    own_config.doubt_unread()
    gate: Gate | None = "elementwise" if c.flag("mla_use_output_gate") else None
    layers = kda_layers(c, kinds, latent_attention(c, positions=NoPositions()), delta, gate=gate)
    extra: tuple[ExtraWeight, ...] = ()
    if c.optional_size("attn_res_block_size"):
        layers = [(name, replace(layer, extra=(*layer.extra, *_sums(c, 2)))) for name, layer in layers]
        extra = _sums(c, 1)
        c.note("FLOPs do not include the weighted sums over blocks of layers (under 0.1% of all FLOPs)")
    c.ignore("activation_situ_beta", "activation_situ_linear_beta")
    # transformers never ties the head to the embedding, whatever the config says.
    return decoder(c, layers, norm=norm(c), positions=NoPositions(), tie_word_embeddings=False, extra=extra)


def _sums(c: Config, count: int) -> tuple[ExtraWeight, ...]:
    """Return the weights of `count` weighted sums over blocks of layers (Kimi K3's attention residuals).

    Each sum has a norm, and a vector that computes one score per block.
    """
    hidden = c.size("hidden_size")
    return (
        vector("residual_norms", "norms", count, hidden),
        matrix("residual_scores", "other", count, hidden),
    )


def kda_layers(
    c: Config, kinds: list[str], full: LatentAttention, delta: KimiDelta, gate: Gate | None
) -> list[tuple[str, Layer]]:
    """Return layers with Kimi's delta attention or latent attention.

    The first layers are dense. The later layers have experts.

    - kinds: the type of each layer. "full_attention" means latent attention.
    - full: the latent attention.
    - delta: the delta attention.
    - gate: the output gate of latent attention. "headwise": one gate value per head. "elementwise": one per channel.
    """
    sparse = _after_dense(c, len(kinds))
    experts = _deepseek_moe(c, sparse, "num_local_experts")
    gates = full.num_attention_heads * (full.v_head_dim if gate == "elementwise" else 1)
    output_gate = matrix("attention.g_proj", "attention", gates, c.size("hidden_size"))
    latent = c.optional_size("routed_expert_hidden_size")
    experts_norm = vector("ffn.latent_norm", "norms", latent or 1)
    normed = latent is not None and c.flag("latent_moe_use_norm")
    layers: list[tuple[str, Layer]] = []
    for kind, has_experts in zip(kinds, sparse, strict=True):
        attends = kind == "full_attention"
        mixer: Mixer = full if attends else delta
        ffn = experts if has_experts and experts is not None else gated(c, bias=False)
        name = ("attention" if attends else "linear") + ("" if has_experts else "_dense")
        extra = (output_gate,) if attends and gate else ()
        if normed and isinstance(ffn, MoE):
            extra = (*extra, experts_norm)
        layers.append((name, block(mixer, ffn, extra=extra)))
    return layers


def _after_dense(c: Config, count: int) -> list[bool]:
    """Return one bool per layer: true if the layer has experts.

    The config key `mlp_layer_types` states these layers. Without it, the first `first_k_dense_replace` layers are
    dense.
    """
    kinds, first = c.entries("mlp_layer_types", count), c.count("first_k_dense_replace", 1)
    return [index >= first if kinds is None else kinds[index] == "sparse" for index in range(count)]


def _deepseek_moe(c: Config, sparse: list[bool], experts: str) -> FFN | None:
    """Return DeepSeek's experts, or None if no layer has experts.

    - sparse: one bool per layer, true if the layer has experts.
    - experts: the config key of the number of routed experts.
    """
    if not any(sparse):
        return None
    shared, width = c.count("n_shared_experts"), c.size("moe_intermediate_size")
    return moe(
        c,
        experts=experts,
        router=deepseek_router(c),
        shared=SharedExperts(intermediate_size=shared * width) if shared else None,
        latent_size=c.optional_size("routed_expert_hidden_size"),
    )
