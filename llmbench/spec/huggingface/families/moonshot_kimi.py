"""Importers for Kimi K2 and Kimi Linear by Moonshot AI."""

from __future__ import annotations

from llmbench.spec.ffn import FFN, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    block,
    decoder,
    deepseek_router,
    gated,
    latent_attention,
    linear_layer_types,
    moe,
    norm,
    num_layers,
)
from llmbench.spec.huggingface.families.deepseek import deepseek_v3
from llmbench.spec.mixer import KimiDelta, LatentAttention, Mixer
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec
from llmbench.spec.position import NoPositions


@family("kimi_k2")
def kimi_k2(c: Config) -> ModelSpec:
    """Kimi K2 has the architecture of DeepSeek-V3 and a model type of its own."""
    return deepseek_v3(c)


@family("kimi_linear")
def kimi_linear(c: Config) -> ModelSpec:
    """Kimi Linear has latent attention in every fourth layer, and delta attention in the other layers.

    The model has no position encoding. `linear_attn_config` can list the numbers of the layers of each kind. The first
    layer has the number 1.
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
    own_config = c.table("linear_attn_config")
    count = num_layers(c)
    derived = ["full_attention" if index and index % 4 == 0 else "linear_attention" for index in range(count)]
    attending = own_config.get("full_attn_layers")
    if isinstance(attending, list) and isinstance(own_config.get("kda_layers"), list):
        derived = ["full_attention" if index + 1 in attending else "linear_attention" for index in range(count)]
        if len(attending) + len(own_config["kda_layers"]) != count:
            raise c.error("linear_attn_config", f"must list each of the {count} layers exactly once")
    kinds = linear_layer_types(c, derived)

    def of_kda(key: str, inner: str) -> int:
        """Return a dimension of the delta attention. The nested object has precedence over the top-level key.

        - key: the name of the key at the top level.
        - inner: the name of the key in the object linear_attn_config.
        """
        if inner in own_config:
            c.put(key, own_config[inner])
        return c.size(key)

    delta = KimiDelta(
        num_heads=of_kda("linear_num_heads", "num_heads"),
        head_dim=of_kda("linear_head_dim", "head_dim"),
        conv_kernel=of_kda("linear_conv_kernel_dim", "short_conv_kernel_size"),
    )
    layers = kda_layers(c, kinds, latent_attention(c, positions=NoPositions()), delta, gate=False)
    # transformers never ties the head to the embedding, whatever the config says.
    return decoder(c, layers, norm=norm(c), positions=NoPositions(), tie_word_embeddings=False)


def kda_layers(
    c: Config, kinds: list[str], full: LatentAttention, delta: KimiDelta, gate: bool
) -> list[tuple[str, Layer]]:
    """Return layers with Kimi's delta attention or latent attention.

    The first layers are dense. The later layers have experts.

    - kinds: the type of each layer. "full_attention" means latent attention.
    - full: the latent attention.
    - delta: the delta attention.
    - gate: latent attention has an output gate per head.
    """
    sparse = _after_dense(c, len(kinds))
    experts = _deepseek_moe(c, sparse, "num_local_experts")
    heads_gate = ExtraWeight(
        name="attention.g_proj",
        shape=(full.num_attention_heads, c.size("hidden_size")),
        role="matmul",
        component="attention",
    )
    layers: list[tuple[str, Layer]] = []
    for kind, has_experts in zip(kinds, sparse, strict=True):
        attends = kind == "full_attention"
        mixer: Mixer = full if attends else delta
        ffn = experts if has_experts and experts is not None else gated(c, bias=False)
        name = ("attention" if attends else "linear") + ("" if has_experts else "_dense")
        layers.append((name, block(mixer, ffn, extra=(heads_gate,) if attends and gate else ())))
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
    )
