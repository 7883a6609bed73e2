"""Importers for Granite 3, Granite 4 and Bamba by IBM."""

from __future__ import annotations

import msgspec

from llmbench.spec.ffn import FFN, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    TOPK_SOFTMAX,
    attention,
    block,
    decoder,
    gated,
    head_dim_of,
    mixture_layers,
    moe,
    norm,
)
from llmbench.spec.huggingface.families.mamba import mamba2_mixer
from llmbench.spec.huggingface.layer_lists import layer_types, newer_layer_type, num_layers, windowed_layers
from llmbench.spec.huggingface.rotation import rope
from llmbench.spec.mixer import Mixer
from llmbench.spec.model import Embedding, Head, Layer, ModelSpec
from llmbench.spec.position import NoPositions, Positions


@family("granite", "granite4_vision_text", "granite_docling_text")
def granite(c: Config) -> ModelSpec:
    """Granite 3 is Llama with constant factors on the embedding, the attention scores, the sublayer outputs and the
    logits."""
    bias = c.flag("attention_bias")
    mixer = attention(c, qkv_bias=bias, output_bias=bias, scale=c.optional_number("attention_multiplier"))
    layer = block(mixer, gated(c), residual_scale=c.number("residual_multiplier", 1.0))
    return granite_model(c, layer, mixer.head_dim)


def granite_model(c: Config, layers: Layer | list[tuple[str, Layer]], head_dim: int) -> ModelSpec:
    """Return a Granite model with these layers. Its embedding and its logits have constant factors."""
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim),
        embedding=Embedding(scale=c.number("embedding_multiplier", 1.0)),
        head=Head(scale=1 / (c.number("logits_scaling", 1.0) or 1.0)),
    )


@family("granite_swa")
def granite_swa(c: Config) -> ModelSpec:
    """Granite SWA is Granite 3 with attention sinks and a sliding window in three of four layers.

    Each layer can have its own RoPE base.
    """
    bias = c.flag("attention_bias")
    window = c.window()
    count = num_layers(c)
    kinds = layer_types(c, ["sliding_attention" if i % 4 else "full_attention" for i in range(count)])
    bases = c.entries("layer_rope_theta", count) or [None] * count
    multiplier = c.optional_number("attention_multiplier")
    ffn, scale = gated(c), c.number("residual_multiplier", 1.0)
    layers: list[tuple[str, Layer]] = []
    for kind, base in zip(kinds, bases, strict=True):
        local = kind == "sliding_attention"
        mixer = attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            sinks=True,
            sliding_window=window if local else None,
            scale=multiplier,
            positions=layer_positions(c, base),
        )
        layers.append(("local" if local else "global", block(mixer, ffn, residual_scale=scale)))
    return granite_model(c, layers, head_dim_of(c))


def layer_positions(c: Config, theta: object) -> Positions | None:
    """Return the position encoding of one layer. `theta` is the layer's entry in `layer_rope_theta`.

    If `theta` is 0, the layer has no position encoding. If `theta` is null or equal to the model's RoPE base, the
    result is None, and the layer uses the position encoding of the model.
    """
    if theta == 0:
        return NoPositions()
    positions = rope(c, head_dim=head_dim_of(c))
    if not isinstance(theta, (int, float)) or theta == positions.theta:
        return None
    return msgspec.structs.replace(positions, theta=float(theta))


@family("granitemoe", "granitemoeshared", "granitemoe_swa")
def granitemoe(c: Config) -> ModelSpec:
    """Granite 3 MoE is Granite 3 with experts in all layers. In granitemoeshared, each layer also has a shared expert.

    granitemoe_swa also has attention sinks, and a sliding window in three of four layers.
    """
    bias = c.flag("attention_bias")
    swa = c.model_type == "granitemoe_swa"
    window = c.window() if swa else None
    common = {
        "qkv_bias": bias,
        "output_bias": bias,
        "scale": c.optional_number("attention_multiplier"),
        "sinks": swa,
    }
    width = c.count("shared_intermediate_size") if c.model_type != "granitemoe" else 0
    shared = SharedExperts(intermediate_size=width) if width else None
    ffn = moe(c, experts="num_local_experts", width="intermediate_size", router=TOPK_SOFTMAX, shared=shared)
    scale = c.number("residual_multiplier", 1.0)
    if not swa:
        mixer = attention(c, **common)
        return granite_model(c, block(mixer, ffn, residual_scale=scale), mixer.head_dim)
    thetas = c.entries("layer_rope_theta", num_layers(c)) or [None] * num_layers(c)
    mixers = [
        (
            "local" if windowed else "global",
            attention(
                c,
                sliding_window=window if windowed else None,
                positions=layer_positions(c, theta),
                **common,
            ),
        )
        for windowed, theta in zip(windowed_layers(c, lambda index: index % 4 != 0), thetas, strict=True)
    ]
    layers = mixture_layers(mixers, [True] * num_layers(c), ffn, None, residual_scale=scale)
    return granite_model(c, layers, head_dim_of(c))


@family("granitemoehybrid")
def granitemoehybrid(c: Config) -> ModelSpec:
    """In Granite 4, `layer_types` states whether a layer has Mamba-2 or attention.

    All layers have a shared feed-forward, and in most models also experts. The model has RoPE only if
    `position_embedding_type` is "rope".
    """
    bias = c.flag("attention_bias")
    full = attention(c, qkv_bias=bias, output_bias=bias, scale=c.optional_number("attention_multiplier"))
    count = num_layers(c)
    kinds = [newer_layer_type(kind) for kind in c.entries("layer_types", count) or ["linear_attention"] * count]
    c.ignore("normalization_function", "init_method", "mamba_expand", "mamba_d_head")
    ssm = mamba2_mixer(c, c.size("mamba_expand") * c.size("hidden_size")) if "linear_attention" in kinds else None
    width = c.size("shared_intermediate_size")
    ffn: FFN
    if c.count("num_local_experts"):
        ffn = moe(
            c,
            experts="num_local_experts",
            width="intermediate_size",
            router=TOPK_SOFTMAX,
            shared=SharedExperts(intermediate_size=width),
        )
    else:
        c.ignore("intermediate_size", "num_experts_per_tok")
        ffn = gated(c, bias=False, width=width)
    scale = c.number("residual_multiplier", 1.0)
    layers = []
    for kind in kinds:
        mixer: Mixer | None = ssm if kind == "linear_attention" else full
        layers.append(("mamba" if kind == "linear_attention" else "attention", block(mixer, ffn, residual_scale=scale)))
    positions = rope(c, head_dim=full.head_dim)
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=positions if c.get("position_embedding_type") == "rope" else NoPositions(),
        embedding=Embedding(scale=c.number("embedding_multiplier", 1.0)),
        head=Head(scale=1 / (c.number("logits_scaling", 1.0) or 1.0)),
    )


@family("bamba")
def bamba(c: Config) -> ModelSpec:
    """Bamba has attention in the layers `attn_layer_indices`, and Mamba-2 in the other layers.

    RoPE rotates half of each head.
    """
    bias = c.flag("attention_bias")
    full = attention(c, qkv_bias=bias, output_bias=bias)
    ssm = mamba2_mixer(c, c.size("mamba_expand") * c.size("hidden_size"))
    attends = set(c.entries("attn_layer_indices") or [])
    # transformers ignores these keys: it reads the layer types from attn_layer_indices, and always rotates half a head.
    c.ignore("layers_block_type", "layer_types", "z_loss_coefficient", "attn_rotary_emb", "partial_rotary_factor")
    ffn = gated(c)
    layers = []
    for index in range(num_layers(c)):
        mixer: Mixer = full if index in attends else ssm
        layers.append(("attention" if index in attends else "mamba", block(mixer, ffn)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=full.head_dim, partial=0.5))
