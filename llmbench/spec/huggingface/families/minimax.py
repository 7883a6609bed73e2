"""Importers for MiniMax-Text-01, M1, M2 and M3 by MiniMax."""

from __future__ import annotations

from typing import Any

from llmbench.spec.ffn import Gated, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    HEAD_NORM,
    TOPK_SOFTMAX,
    activation,
    attention,
    block,
    decoder,
    matrix,
    mixture_layers,
    moe,
    norm,
    vector,
)
from llmbench.spec.huggingface.layer_lists import layer_types, num_layers, sparse_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import LightningAttention, QKNorm
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec, NextTokenPrediction


@family("minimax", "minimax_text_01", "MiniMaxText01", "minimax_m1")
def minimax(c: Config) -> ModelSpec:
    """MiniMax-Text-01 and M1 have seven layers of lightning attention, then one layer of softmax attention, and so on.

    All layers have experts. In older configs on the hub, `attn_type_list` states the type of each layer: 0 means
    lightning attention, 1 means softmax attention.
    """
    full = attention(c, sliding_window=c.window())
    linear = LightningAttention(
        num_attention_heads=full.num_attention_heads,
        head_dim=full.head_dim,
        block_size=c.size("block_size", 256),
        stored_decays=c.model_type == "minimax",
    )
    count = num_layers(c)
    derived = ["full_attention" if (i + 1) % 2 else "linear_attention" for i in range(count)]
    if c.model_type != "minimax":
        softmax = c.entries("attn_type_list", count)
        if softmax is None:
            raise c.error("attn_type_list", f"is missing; `{c.model_type}` needs it")
        derived = ["full_attention" if kind == 1 else "linear_attention" for kind in softmax]
        if c.count("shared_intermediate_size"):
            c.doubt("shared_intermediate_size: the shared expert is not counted")
        c.ignore("shared_moe_mode")
    kinds = layer_types(c, derived)
    ffn = moe(c, experts="num_local_experts", width="intermediate_size", router=TOPK_SOFTMAX)
    if ffn.activation != "silu":
        c.unbuildable(
            f"hidden_act = `{ffn.activation}` is also the activation in lightning attention, which supports only `silu`"
        )
    layers = []
    for kind in kinds:
        residual = _minimax_residual(c, kind)
        if kind == "linear_attention":
            layers.append(("linear", block(linear, ffn, **residual)))
        else:
            layers.append(("attention", block(full, ffn, **residual)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=full.head_dim))


def _minimax_residual(c: Config, kind: str) -> dict[str, Any]:
    """Return the fields of a Layer for its residual sums: α on the skip connection, β on the output of the sublayer.

    In transformers, the skip connection starts after the norm. In the code on the hub, it starts there only if
    `postnorm` is true. The config keys of α and β also differ between transformers and the hub.
    """
    hub = c.model_type != "minimax"
    layer_type = "linear_attention" if kind == "linear_attention" else "full_attention"
    layer_type = layer_type if hub else layer_type.replace("attention", "attn")

    def factor(part: str, name: str) -> float:
        """Return the factor `name` ("alpha" or "beta") of the sublayer `part` (an attention type or "mlp")."""
        return c.number(f"layernorm_{part}_{name}" if hub else f"{part}_{name}_factor", 1.0)

    alpha, beta = (factor(layer_type, name) for name in ("alpha", "beta"))
    if (alpha, beta) != (factor("mlp", "alpha"), factor("mlp", "beta")):
        c.unbuildable("the two residual sums of a layer have different factors, but only equal factors are supported")
    behind = c.flag("postnorm") if hub else True
    return {"skip_scale": alpha, "residual_scale": beta, "residual_from_norm": behind}


@family("minimax_m2")
def minimax_m2(c: Config) -> ModelSpec:
    """MiniMax-M2 has norms on q and k that cover all heads, and a sigmoid router with a stored bias for load
    balancing."""
    c.require("use_qk_norm", True)
    c.require("qk_norm_type", "per_layer")
    c.ignore(
        """
        scoring_func mtp_transformer_layers use_mtp shared_moe_mode mlp_intermediate_size
        layernorm_full_attention_beta layernorm_linear_attention_beta layernorm_mlp_beta
        """,
    )
    c.require("use_routing_bias", True)
    c.require("shared_intermediate_size", 0)
    c.require("moe_intermediate_size", c.size("intermediate_size"))
    if any(kind != 1 for kind in c.entries("attn_type_list") or []):
        c.doubt("attn_type_list has an entry that is not 1 (full attention)")
    mixer = attention(c, qk_norm=QKNorm(over="full"))
    ffn = moe(
        c,
        experts="num_local_experts",
        width="intermediate_size",
        router=Router(scores="sigmoid", correction="buffer", normalize=True),
    )
    mtp = c.count("num_mtp_modules")
    return decoder(
        c,
        block(mixer, ffn),
        norm=norm(c),
        positions=rope(c, head_dim=mixer.head_dim),
        next_token_prediction=NextTokenPrediction(count=mtp, layer="block", files="none") if mtp else None,
    )


@family("minimax_m3_vl_text", "minimax_m3")
def minimax_m3(c: Config) -> ModelSpec:
    """MiniMax-M3 has grouped-query attention with norms on each head of q and k.

    In some layers, an indexer selects the blocks of keys that attention reads.
    """
    legacy = c.table("sparse_attention_config")
    count, hidden = num_layers(c), c.size("hidden_size")
    for key, alias in (("index_n_heads", "sparse_num_index_heads"), ("index_head_dim", "sparse_index_dim")):
        if alias in legacy:
            c.put(key, legacy[alias])
    c.ignore(
        """
        index_block_size index_topk_blocks index_local_blocks use_qk_norm
        use_gemma_norm qk_norm_type use_routing_bias scoring_func num_mtp_modules use_mtp
        """,
    )
    c.put("rotary_dim", None)  # transformers ignores rotary_dim and reads partial_rotary_factor
    if (c.number("swiglu_alpha", 1.702), c.number("swiglu_limit", 7.0)) != (1.702, 7.0):
        c.unbuildable("only swiglu_alpha = 1.702 with swiglu_limit = 7.0 is supported")
    c.ignore("mtp_transformer_layers", "index_n_heads", "index_head_dim")
    stated = c.entries("layer_types", count)
    frequency = legacy.get("sparse_attention_freq")
    if stated is None and isinstance(frequency, list):
        if len(frequency) != count:
            raise c.error(
                "sparse_attention_config", f"must have {count} entries in sparse_attention_freq, not {len(frequency)}"
            )
        stated = ["minimax_m3_sparse" if chosen else "full_attention" for chosen in frequency]
    kinds = stated or ["full_attention"] * count
    chosen = c.entries("moe_layer_freq", count)
    sparse = sparse_layers(c, lambda index: bool(chosen[index]) if chosen else True)
    mixer = attention(c, qk_norm=HEAD_NORM)
    c.put("hidden_act", "swiglu_oai")
    ffn = moe(
        c,
        experts="num_local_experts",
        width="intermediate_size",
        router=Router(
            scores="sigmoid",
            correction="buffer",
            normalize=True,
            scale=c.number("routed_scaling_factor", 1.0),
        ),
        shared=SharedExperts(intermediate_size=c.size("shared_intermediate_size")),
    )
    c.require("n_shared_experts", 1)
    dense = Gated(intermediate_size=c.size("dense_intermediate_size"), activation=activation(c))
    layers: list[tuple[str, Layer]] = []
    for kind, has_experts in zip(kinds, sparse, strict=True):
        if kind not in ("full_attention", "minimax_m3_sparse"):
            raise c.error(
                "layer_types",
                f"has the entry `{str(kind)[:40]}`; known are full_attention, minimax_m3_sparse",
            )
        extra: tuple[ExtraWeight, ...] = ()
        if kind == "minimax_m3_sparse":
            c.doubt("attention to selected blocks is counted as attention to all keys, and the indexer is not counted")
            width, heads = c.size("index_head_dim"), c.size("index_n_heads")
            extra = (
                matrix("attention.indexer.q_proj", "attention_extra", heads * width, hidden),
                matrix("attention.indexer.k_proj", "attention_extra", width, hidden),
                vector("attention.indexer.norms", "attention_extra", 2, width),
            )
        name = "chosen" if extra else "global"
        layers += mixture_layers([(name, mixer)], [has_experts], ffn, dense, extra=extra)
    return decoder(c, layers, norm=norm(c, unit_offset=True), positions=rope(c, head_dim=mixer.head_dim))
