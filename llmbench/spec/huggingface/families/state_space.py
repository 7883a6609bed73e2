"""Hybrids of Mamba and attention: Bamba, Falcon-H1, Granite 4, Zamba 1 and 2, and RWKV-4."""

from __future__ import annotations

import math

import msgspec

from llmbench.spec.ffn import FFN, Dense, Gated, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.hybrid import silu_only, time_step_limits
from llmbench.spec.huggingface.families.mixture import TOPK_SOFTMAX
from llmbench.spec.huggingface.parts import (
    activation,
    attention,
    block,
    decoder,
    gated,
    moe,
    norm,
    rope,
)
from llmbench.spec.mixer import RWKV, Attention, Mamba, Mamba2, Mixer, Parallel
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec
from llmbench.spec.position import NoPositions


def ssm_kind(kind: object) -> str:
    """Old and new names of a layer's kind: "mamba" and "linear_attention", "attention" and
    "full_attention"."""
    return {"mamba": "linear_attention", "mamba2": "linear_attention", "attention": "full_attention"}.get(
        str(kind), str(kind)
    )


def _mamba2(c: Config, width: int, *, out_proj_bias: bool | None = None, gated_norm: bool = True) -> Mamba2:
    """Mamba-2 by the keys `mamba_*`; its heads must fill `width`."""
    heads = c.size("mamba_n_heads")
    given = c.get("mamba_d_head")
    head_dim = width // heads if given in ("auto", None) else c.size("mamba_d_head")
    if heads * head_dim != width:
        raise c.error("mamba_n_heads", f"× mamba_d_head must equal the mixer's width {width}")
    c.ignore("mamba_expand", "mamba_norm_before_gate", "mamba_use_mlp")
    silu_only(c, "hidden_act")
    shortest, longest = time_step_limits(c)
    return Mamba2(
        num_heads=heads,
        head_dim=head_dim,
        state_size=c.size("mamba_d_state"),
        n_groups=c.size("mamba_n_groups"),
        conv_kernel=c.size("mamba_d_conv"),
        chunk_size=c.size("mamba_chunk_size", 256),
        conv_bias=c.flag("mamba_conv_bias", True),
        proj_bias=c.flag("mamba_proj_bias"),
        out_proj_bias=out_proj_bias,
        gated_norm=gated_norm,
        norm_before_gate=c.model_type == "falcon_h1" and c.flag("mamba_norm_before_gate", True),
        time_step_min=shortest,
        time_step_max=longest,
    )


@family("bamba")
def bamba(c: Config) -> ModelSpec:
    """Bamba: Mamba-2 with attention in the layers `attn_layer_indices`, half of each head rotated."""
    bias = c.flag("attention_bias")
    full = attention(c, qkv_bias=bias, output_bias=bias)
    ssm = _mamba2(c, c.size("mamba_expand") * c.size("hidden_size"))
    attends = set(c.entries("attn_layer_indices") or [])
    # The class derives the kinds from the indices and the half rotation from nothing, whatever a file says.
    c.ignore("layers_block_type", "layer_types", "z_loss_coefficient", "attn_rotary_emb", "partial_rotary_factor")
    ffn = gated(c)
    layers = []
    for index in range(min(c.size("num_hidden_layers"), 10_001)):
        mixer: Mixer = full if index in attends else ssm
        layers.append(("attention" if index in attends else "mamba", block(mixer, ffn)))
    return decoder(c, layers, norm=norm(c), positions=rope(c, head_dim=full.head_dim, partial=0.5))


@family("falcon_h1")
def falcon_h1(c: Config) -> ModelSpec:
    """Falcon-H1: attention and Mamba-2 side by side in every layer; multipliers in place of learned
    scales."""
    bias = c.flag("attention_bias")
    full = attention(c, qkv_bias=bias, output_bias=bias)
    longer = c.number("key_multiplier", 1.0)
    if longer != 1.0:  # of keys, and so of scores
        full = msgspec.structs.replace(full, scale=full.head_dim**-0.5 * longer)
    width = c.optional_size("mamba_d_ssm") or c.size("mamba_expand") * c.size("hidden_size")
    ssm = _mamba2(c, width, out_proj_bias=c.flag("projectors_bias"), gated_norm=c.flag("mamba_rms_norm"))
    ssm = msgspec.structs.replace(ssm, projection_scales=_multipliers(c, "ssm_multipliers", 5))
    c.ignore("layers_block_type", "layer_types", "attn_layer_indices", "mlp_expansion_factor")
    gate, out = _multipliers(c, "mlp_multipliers", 2) or (1.0, 1.0)
    mixer = Parallel(
        branches=(ssm, full),
        input_scales=_unless_one(c.number("ssm_in_multiplier", 1.0), c.number("attention_in_multiplier", 1.0)),
        output_scales=_unless_one(c.number("ssm_out_multiplier", 1.0), c.number("attention_out_multiplier", 1.0)),
    )
    return decoder(
        c,
        block(mixer, msgspec.structs.replace(gated(c), gate_scale=gate, output_scale=out)),
        norm=norm(c),
        positions=rope(c, head_dim=full.head_dim),
        embedding=Embedding(scale=c.number("embedding_multiplier", 1.0)),
        head=Head(scale=c.number("lm_head_multiplier", 1.0)),
    )


def _multipliers(c: Config, key: str, count: int) -> tuple[float, ...]:
    """A list of `count` factors; empty where they change nothing."""
    given = c.entries(key) or []
    if given and (len(given) != count or not all(isinstance(x, (int, float)) and abs(x) < 1e30 for x in given)):
        raise c.error(key, f"must be {count} numbers")
    return _unless_one(*map(float, given))


def _unless_one(*factors: float) -> tuple[float, ...]:
    return () if all(factor == 1.0 for factor in factors) else factors


@family("granitemoehybrid")
def granitemoehybrid(c: Config) -> ModelSpec:
    """Granite 4: Mamba-2 and attention by `layer_types`; a shared feed-forward in every layer, beside experts
    or alone; no positions unless `position_embedding_type` is rope."""
    bias = c.flag("attention_bias")
    full = attention(c, qkv_bias=bias, output_bias=bias, scale=c.optional_number("attention_multiplier"))
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = [ssm_kind(kind) for kind in c.entries("layer_types", count) or ["linear_attention"] * count]
    c.ignore("normalization_function", "init_method", "mamba_expand", "mamba_d_head")
    ssm = _mamba2(c, c.size("mamba_expand") * c.size("hidden_size")) if "linear_attention" in kinds else None
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


def _memory_block(tag: str, mixer: Attention, ffn: FFN, hidden: int) -> Layer:
    """Zamba's shared block: attention on the hidden state beside the embedding, then a feed-forward, no
    residuals."""
    assert mixer.input_size is not None
    norms = (
        ExtraWeight(name="input_norm", shape=(mixer.input_size,), role="vector", component="norms"),
        ExtraWeight(name="ffn_norm", shape=(hidden,), role="vector", component="norms"),
    )
    return Layer(mixer=mixer, ffn=ffn, placement="none", shared_weights=tag, extra=norms)


def _doubt_untied(c: Config) -> None:
    if not c.flag("tie_word_embeddings"):
        c.doubt("tie_word_embeddings = False: transformers then also gives every shared block weights of its own")


def _wide_attention(c: Config, width: int, head_dim: int) -> Attention:
    """Attention over twice the hidden width; scores are scaled by half the head."""
    return attention(c, head_dim=head_dim, input_size=width, scale=(max(1, head_dim) / 2) ** -0.5)


@family("zamba")
def zamba(c: Config) -> ModelSpec:
    """Zamba: Mamba with one attention block whose single set of weights is used again in every hybrid
    layer."""
    hidden, count = c.size("hidden_size"), min(c.size("num_hidden_layers"), 10_001)
    rank = c.get("mamba_dt_rank")
    # The mixer's heads split x_proj and dt_proj into blocks that together have the one-head shape.
    ssm = Mamba(
        intermediate_size=c.size("mamba_expand") * hidden,
        state_size=c.size("mamba_d_state"),
        conv_kernel=c.size("mamba_d_conv"),
        time_step_rank=rank if isinstance(rank, int) and rank > 0 else math.ceil(hidden / 16),
        conv_bias=c.flag("mamba_conv_bias", True),
        proj_bias=c.flag("mamba_proj_bias"),
    )
    c.ignore("n_mamba_heads", "hidden_mamba_act", "ffn_hidden_size", "num_experts", "num_experts_per_tok")
    _doubt_untied(c)
    width = c.optional_size("attention_hidden_size") or 2 * hidden
    head_dim = c.optional_size("attention_head_dim") or 2 * hidden // c.size("num_attention_heads")
    shared = _memory_block("shared", _wide_attention(c, width, head_dim), gated(c, bias=False), hidden)
    period, offset = c.size("attn_layer_period"), c.count("attn_layer_offset")
    derived = ["linear_attention", "linear_attention", "hybrid"]
    derived += ["hybrid" if i % period == offset else "linear_attention" for i in range(count - 3)]
    kinds = [ssm_kind(kind) for kind in c.entries("layers_block_type") or derived]
    linear = ExtraWeight(name="linear", shape=(hidden, hidden), role="matmul", component="other")
    layers = []
    for kind in kinds:
        if kind == "hybrid":
            layers.append(("shared", shared))
        layers.append(("mamba", block(ssm, None, extra=(linear,) if kind == "hybrid" else ())))
    c.put("num_hidden_layers", len(layers))
    return decoder(c, layers, norm=norm(c), positions=NoPositions())


@family("zamba2")
def zamba2(c: Config) -> ModelSpec:
    """Zamba-2: Mamba-2 with `num_mem_blocks` shared blocks in turn, each use with low-rank adapters of its
    own."""
    hidden = c.size("hidden_size")
    kinds = [ssm_kind(kind) for kind in c.entries("layers_block_type") or _ZAMBA2_LAYERS]
    heads, width = c.size("n_mamba_heads"), c.size("mamba_expand") * hidden
    if width % heads:
        raise c.error("n_mamba_heads", f"{heads} does not divide the mixer's width {width}")
    ssm = Mamba2(
        num_heads=heads,
        head_dim=width // heads,
        state_size=c.size("mamba_d_state"),
        n_groups=c.size("mamba_ngroups"),
        conv_kernel=c.size("mamba_d_conv"),
        chunk_size=c.size("chunk_size", 256),
        proj_bias=c.flag("add_bias_linear"),
    )
    # The class derives these from the sizes above, whatever a file says.
    c.ignore(
        "attention_hidden_size",
        "attention_head_dim",
        "mamba_headdim",
        "kv_channels",
        "num_query_groups",
        "ffn_hidden_size",
        "hybrid_layer_ids",
        "use_long_context",
        "mamba_expand",
        "state_size",
        "num_hidden_layers",
        "use_conv_bias",
        "use_mem_eff_path",
        "use_shared_mlp_adapter",
    )
    _doubt_untied(c)
    head_dim = 2 * hidden // c.size("num_attention_heads")
    mixer = _wide_attention(c, 2 * hidden, head_dim)
    inner = c.optional_size("intermediate_size") or 4 * hidden
    ffn = Gated(intermediate_size=inner, activation=activation(c), bias=c.flag("add_bias_linear"))
    rank, blocks = c.size("adapter_rank"), c.size("num_mem_blocks")
    own = [ExtraWeight(name="linear", shape=(hidden, hidden), role="matmul", component="other")]
    own += _adapter("ffn.adapter", hidden, rank, 2 * inner, "mlp")
    if c.flag("use_shared_attention_adapter"):
        for letter in "qkv":
            own += _adapter(f"attention.{letter}_adapter", 2 * hidden, rank, 2 * hidden, "attention")
    layers: list[tuple[str, Layer]] = []
    for used, kind in _counted(kinds):
        if kind == "hybrid":
            tag = f"shared{used % blocks}"
            layers.append((tag, _memory_block(tag, mixer, ffn, hidden)))
        layers.append(("mamba", block(ssm, None, extra=tuple(own) if kind == "hybrid" else ())))
    c.put("num_hidden_layers", len(layers))
    positions = rope(c, head_dim=head_dim)
    return decoder(c, layers, norm=norm(c), positions=positions if c.flag("use_mem_rope") else NoPositions())


_ZAMBA2_LAYERS = (
    ["mamba"]
    + (["mamba"] * 5 + ["hybrid"]) * 7
    + ["mamba"] * 4
    + ["hybrid"]
    + ["mamba"] * 3
    + ["hybrid"]
    + ["mamba"] * 2
)
"""Zamba2-2.7B's order, which the class takes where a config has none."""


def _counted(kinds: list[str]) -> list[tuple[int, str]]:
    """Each layer's kind with the number of hybrid layers before it."""
    return [(kinds[:index].count("hybrid"), kind) for index, kind in enumerate(kinds)]


def _adapter(name: str, inputs: int, rank: int, outputs: int, component: str) -> list[ExtraWeight]:
    """Two matrices of low rank."""
    place: dict[str, object] = {"role": "matmul", "component": component}
    return [
        ExtraWeight(name=f"{name}.down", shape=(rank, inputs), **place),  # type: ignore[arg-type]
        ExtraWeight(name=f"{name}.up", shape=(outputs, rank), **place),  # type: ignore[arg-type]
    ]


@family("rwkv")
def rwkv(c: Config) -> ModelSpec:
    """RWKV-4: no attention; the channel mixing is a squared-ReLU feed-forward behind a gate of the hidden
    width."""
    hidden = c.size("hidden_size")
    width = c.optional_size("attention_hidden_size") or hidden
    ffn = Dense(intermediate_size=c.optional_size("intermediate_size") or 4 * hidden, activation="relu2")
    c.ignore("context_length", "rescale_every")
    extra = (
        ExtraWeight(name="ffn.receptance", shape=(hidden, hidden), role="matmul", component="mlp"),
        ExtraWeight(name="ffn.time_mix_key", shape=(hidden,), role="vector", component="mlp"),
        ExtraWeight(name="ffn.time_mix_receptance", shape=(hidden,), role="vector", component="mlp"),
    )
    layer = block(RWKV(width=width), ffn, extra=extra)
    return decoder(c, layer, norm=norm(c, "layernorm"), embedding=Embedding(norm=True))
