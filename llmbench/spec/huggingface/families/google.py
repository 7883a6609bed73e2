"""Importers for Gemma 1 to 4, RecurrentGemma, and T5 and its successors, by Google."""

from __future__ import annotations

import math

from msgspec.structs import replace

from llmbench.spec.ffn import FFN, Dense, Gated, MoE, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.families.common import (
    activation,
    attention,
    block,
    decoder,
    expect_activation,
    gated,
    norm,
    per_layer,
)
from llmbench.spec.huggingface.layer_lists import expect_depths, layer_sizes, layer_types, num_layers
from llmbench.spec.huggingface.rotation import expect_rope_type, rope
from llmbench.spec.mixer import RGLRU, Attention, Mixer, QKNorm
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec, PerLayerEmbedding, Placement, Stack
from llmbench.spec.position import RelativeBias, Rope


@family("gemma")
def gemma(c: Config) -> ModelSpec:
    """Gemma 1 is Llama with GEGLU, a large head_dim and a scaled embedding. Its norms multiply by 1 + weight."""
    bias = c.flag("attention_bias")
    _expect_causal(c)
    mixer = attention(c, qkv_bias=bias, output_bias=bias)
    if c.get("hidden_act") == "gelu":  # the first configs say so, but the checkpoints need the approximation
        c.put("hidden_act", "gelu_pytorch_tanh")
    return decoder(
        c,
        block(mixer, gated(c, bias=False)),
        norm=norm(c, unit_offset=True),
        positions=rope(c, head_dim=mixer.head_dim),
        embedding=Embedding(scale=c.size("hidden_size") ** 0.5),
    )


def _expect_causal(c: Config) -> None:
    """Mark the spec as approximate if tokens also see later tokens: in a prompt (PaliGemma) or everywhere."""
    if c.get("use_bidirectional_attention"):
        c.doubt("use_bidirectional_attention: tokens also see later tokens, but llmbench counts causal attention")


@family("gemma2")
def gemma2(c: Config) -> ModelSpec:
    """Gemma 2 has four norms per layer and soft caps. Every second layer has a sliding window."""
    count = num_layers(c)
    kinds = layer_types(c, ["sliding_attention" if i % 2 == 0 else "full_attention" for i in range(count)])
    return _local_and_global(c, kinds, cap=c.optional_number("attn_logit_softcapping"))


@family("gemma3_text")
def gemma3(c: Config) -> ModelSpec:
    """Gemma 3 has norms on q and k. Every sixth layer has full attention. The other layers have a sliding window.

    Layers with a window have another RoPE base than layers with full attention.
    """
    every = c.size("sliding_window_pattern", 6)
    c.ignore("_sliding_window_pattern", "cache_implementation")
    count = num_layers(c)
    derived = ["sliding_attention" if (i + 1) % every else "full_attention" for i in range(count)]
    cap = c.optional_number("attn_logit_softcapping")
    if cap is not None:
        c.unbuildable("attn_logit_softcapping is set, but transformers does not apply it in Gemma 3")
    return _local_and_global(c, layer_types(c, derived), cap=cap, qk_norm=QKNorm())


@family("vaultgemma")
def vaultgemma(c: Config) -> ModelSpec:
    """VaultGemma is Gemma 2 with two norms per layer instead of four: one norm before each sublayer."""
    count = num_layers(c)
    kinds = layer_types(c, ["sliding_attention" if (i + 1) % 2 else "full_attention" for i in range(count)])
    return _local_and_global(c, kinds, cap=c.optional_number("attn_logit_softcapping"), placement="pre")


def _local_and_global(
    c: Config,
    kinds: list[str],
    *,
    cap: float | None,
    qk_norm: QKNorm | None = None,
    placement: Placement = "sandwich",
) -> ModelSpec:
    """Return a model of the kind of Gemma 2 and 3, with full attention in some layers and windows in the other layers.

    - kinds: the type of each layer, "sliding_attention" or "full_attention".
    - cap: the soft cap of the attention scores.
    """
    bias = c.flag("attention_bias")
    _expect_causal(c)
    scalar = c.optional_number("query_pre_attn_scalar")
    if scalar is not None and scalar < 0:
        raise c.error("query_pre_attn_scalar", f"{scalar:g} is negative")
    common = {
        "qkv_bias": bias,
        "output_bias": bias,
        "qk_norm": qk_norm,
        "logit_soft_cap": cap,
        "scale": None if not scalar else scalar**-0.5,
    }
    head_dim = attention(c).head_dim
    local_theta = c.optional_number("rope_local_base_freq")
    by_type = c.model_type == "gemma3_text"  # the classes of Gemma 2 and VaultGemma read one RoPE for all layers
    positions = rope(c, head_dim=head_dim, layer_type="full_attention" if by_type else None)
    local_positions = rope(c, head_dim=head_dim, layer_type="sliding_attention") if by_type else positions
    # Without rope_parameters, all RoPE keys but rope_local_base_freq apply to layers with full attention only.
    if c.model_type == "gemma3_text" and not c.table("rope_parameters"):
        local_positions = Rope(theta=10000.0 if local_theta is None else local_theta)
        expect_rope_type(c)
    window = c.window()
    ffn = gated(c, bias=False)
    layers = []
    for kind in kinds:
        if kind == "sliding_attention":
            own_positions = None if local_positions == positions else local_positions
            mixer = attention(c, sliding_window=window, positions=own_positions, **common)
            layers.append(("local", block(mixer, ffn, placement)))
        else:
            layers.append(("global", block(attention(c, **common), ffn, placement)))
    return decoder(
        c,
        layers,
        norm=norm(c, unit_offset=True),
        positions=positions,
        embedding=Embedding(scale=c.size("hidden_size") ** 0.5),
        head=Head(soft_cap=c.optional_number("final_logit_softcapping")),
    )


@family("gemma3n_text")
def gemma3n(c: Config) -> ModelSpec:
    """Gemma 3n has four residual streams (AltUp), LAuReL parallel to attention, and per-layer embeddings.

    The last layers have no key and value projections. They read the keys and values of earlier layers.
    """
    c.note("FLOPs do not include the mixing of AltUp's streams with computed coefficients (under 0.1% of all FLOPs)")
    hidden, streams, rank = c.size("hidden_size"), c.size("altup_num_inputs"), c.size("laurel_rank")
    count = num_layers(c)
    kinds = layer_types(c, ["full_attention" if (i + 1) % 5 == 0 else "sliding_attention" for i in range(count)])
    widths = layer_sizes(c, "intermediate_size")
    c.ignore(
        "query_pre_attn_scalar",
        "altup_lr_multiplier",
        "activation_sparsity_pattern",
        "altup_active_idx",
        "altup_coef_clip",
        "altup_correct_scale",
        "rope_local_base_freq",
    )
    bias = c.flag("attention_bias")
    layer_extra = [
        ExtraWeight(name="altup.correct_output_scale", shape=(hidden,), role="vector"),
        ExtraWeight(name="altup.correction_coefs", shape=(streams, streams), role="matmul"),
        ExtraWeight(name="altup.prediction_coefs", shape=(streams**2, streams), role="matmul"),
        ExtraWeight(name="altup.modality_router", shape=(streams, hidden), role="matmul"),
        ExtraWeight(name="altup.router_norm", shape=(hidden,), role="vector"),
        ExtraWeight(name="laurel.linear_left", shape=(rank, hidden), role="matmul"),
        ExtraWeight(name="laurel.linear_right", shape=(hidden, rank), role="matmul"),
        ExtraWeight(name="laurel.norm", shape=(hidden,), role="vector"),
    ]
    window = c.window()
    local_positions = _rotation(c, "sliding_attention", attention(c).head_dim, 10_000.0)
    first_shared = _first_shared(c, count)
    layers: list[tuple[str, Layer]] = []
    for index, kind in enumerate(kinds):
        local = kind == "sliding_attention"
        mixer = attention(
            c,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=QKNorm(),
            value_norm=True,
            scale=1.0,
            sliding_window=window if local else None,
            positions=local_positions if local else None,
            shares_kv=index >= first_shared,
        )
        ffn = gated(c, bias=False, width=widths[index])
        name = ("local" if local else "global") + ("_shared" if index >= first_shared else "")
        layers.append((name, block(mixer, ffn, "sandwich", extra=tuple(layer_extra))))
    extra = [
        ExtraWeight(name=f"{name}.{index}", shape=(hidden, hidden), role="matmul")
        for index in range(streams - 1)
        for name in ("altup_projections", "altup_unembed_projections")
    ]
    return _gemma_model(c, layers, extra, attention(c).head_dim)


@family("gemma4_text", "gemma4_unified_text")
def gemma4(c: Config) -> ModelSpec:
    """Gemma 4 has a stored scale per layer. Full attention has other head dimensions than sliding-window attention.

    In full attention, the keys can also be the values. E2B and E4B have per-layer embeddings, and layers that read the
    keys and values of earlier layers. 26B-A4B has experts parallel to the dense feed-forward. The last layer always has
    full attention, even if the config states another type.
    """
    count = num_layers(c)
    kinds = layer_types(c, ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(count)])
    kinds[-1:] = ["full_attention"]
    window = c.window()
    if c.get("use_bidirectional_attention") == "all":
        c.doubt("use_bidirectional_attention = all: the attention is counted as causal")
    bias = c.flag("attention_bias")
    keys_are_values = c.flag("attention_k_eq_v")
    of_global = {"head_dim": c.size("global_head_dim", 512)}
    if keys_are_values and c.optional_size("num_global_key_value_heads"):
        of_global["num_key_value_heads"] = c.size("num_global_key_value_heads")
    c.ignore("num_global_key_value_heads")
    local_positions = _rotation(c, "sliding_attention", attention(c).head_dim, 10_000.0)
    first_shared = _first_shared(c, count)
    double = c.flag("use_double_wide_mlp")
    width = c.size("intermediate_size")
    experts = _experts(c) if c.flag("enable_moe_block") else None
    c.ignore("num_experts", "top_k_experts", "moe_intermediate_size", "expert_intermediate_size")
    layers: list[tuple[str, Layer]] = []
    for index, kind in enumerate(kinds):
        shared, local = index >= first_shared, kind == "sliding_attention"
        own = c.layer(index, {} if local else of_global)
        mixer = attention(
            own,
            sliding_window=window if local else None,
            positions=local_positions if local else None,
            qkv_bias=bias,
            output_bias=bias,
            qk_norm=QKNorm(),
            value_norm=True,
            value_from_key=keys_are_values and not local,
            shares_kv=shared,
            scale=1.0,
        )
        own.doubt_unread()
        plain = gated(c, bias=False, width=2 * width if double and shared else width)
        ffn: FFN = plain if experts is None else _with_dense(experts, plain)
        name = ("local" if local else "global") + ("_shared" if shared else "")
        layers.append((name, block(mixer, ffn, "sandwich", output_scale=True)))
    return _gemma_model(c, layers, [], mixer.head_dim)


def _experts(c: Config) -> MoE:
    """Return Gemma 4's experts."""
    return MoE(
        num_experts=c.size("num_experts"),
        num_experts_per_tok=c.size("top_k_experts"),
        intermediate_size=c.size("moe_intermediate_size", c.get("expert_intermediate_size")),
        activation=activation(c),
        router=Router(normalize=True),
    )


def _with_dense(experts: MoE, plain: Gated) -> MoE:
    """Return the experts with a dense feed-forward that runs in parallel to them."""
    return replace(experts, beside=plain, separate_norms=True)


def _per_layer_embedding(c: Config) -> PerLayerEmbedding | None:
    """Return the per-layer embeddings. None: the config states no width of them."""
    vocab, width = c.size("vocab_size_per_layer_input", 1), c.optional_size("hidden_size_per_layer_input")
    return None if width is None else PerLayerEmbedding(size=width, vocab_size=vocab)


def _first_shared(c: Config, count: int) -> int:
    """Return the index of the first layer that reads the keys and values of an earlier layer.

    The earlier layer has the same layer type.
    """
    shared = c.count("num_kv_shared_layers")
    if shared >= count:
        raise c.error("num_kv_shared_layers", f"{shared} must be less than the number of layers, {count}")
    return count - shared


def _rotation(c: Config, kind: str, head_dim: int, base: float) -> Rope:
    """Return the RoPE of a layer type. Its base is `base` if the config states no RoPE for this type."""
    positions = rope(c, head_dim=head_dim, layer_type=kind)
    expect_rope_type(c)
    stated = isinstance(c.table("rope_parameters").get(kind), dict)
    return positions if stated else Rope(theta=base)


def _gemma_model(c: Config, layers: list[tuple[str, Layer]], extra: list[ExtraWeight], head_dim: int) -> ModelSpec:
    """Return a Gemma 3n or 4 model with these layers."""
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim, layer_type="full_attention"),
        embedding=Embedding(scale=c.size("hidden_size") ** 0.5, per_layer=_per_layer_embedding(c)),
        head=Head(soft_cap=c.optional_number("final_logit_softcapping")),
        extra=tuple(extra),
    )


@family("recurrent_gemma")
def recurrent_gemma(c: Config) -> ModelSpec:
    """RecurrentGemma (Griffin) has two recurrent layers, then one layer of attention with a sliding window, and so on.

    The config key `intermediate_size` is the sum of the widths of gate and up projection.
    """
    hidden = c.size("hidden_size")
    kinds = c.entries("block_types") or ["recurrent", "recurrent", "attention"]
    count = num_layers(c)
    local = attention(
        c,
        qkv_bias=c.flag("attention_bias"),
        output_bias=True,
        sliding_window=c.window("attention_window_size"),
    )
    lru = RGLRU(
        lru_width=c.size("lru_width", hidden),
        num_heads=c.size("num_attention_heads"),
        conv_kernel=c.size("conv1d_width"),
    )
    if lru.lru_width % lru.num_heads:
        raise c.error("lru_width", f"{lru.lru_width} is not a multiple of num_attention_heads {lru.num_heads}")
    ffn = gated(c, bias=True, width=c.size("intermediate_size") // 2)
    expect_activation(c, "hidden_activation", "gelu_tanh")
    c.ignore("_block_types", "logits_soft_cap", "final_w_init_variance_scale")
    layers = []
    for index in range(count):
        attends = kinds[index % len(kinds)] == "attention"
        mixer: Mixer = local if attends else lru
        layers.append(("attention" if attends else "recurrent", block(mixer, ffn)))
    return decoder(
        c,
        layers,
        norm=norm(c, unit_offset=True),
        positions=rope(c, head_dim=local.head_dim, partial=0.5),
        embedding=Embedding(scale=_as_bfloat16(hidden**0.5)),
        head=Head(soft_cap=c.optional_number("logits_soft_cap")),
    )


def _as_bfloat16(x: float) -> float:
    """Round `x` to 8 significant bits. transformers stores the scale of the embedding in bf16."""
    fraction, exponent = math.frexp(x)
    return math.ldexp(round(fraction * 256), exponent - 8)


TIES_EVERY_HEAD = "transformers 5 writes tie_word_embeddings = true even if the checkpoint has a head of its own"
"""The reason why the head of an mT5 is uncertain without its files."""


@family("t5", "mt5", "umt5", "longt5", "switch_transformers")
def t5(c: Config) -> ModelSpec:
    """T5 and its versions are encoder-decoders with a relative position bias.

    LongT5 has a sliding window in the encoder. Switch has experts in every n-th layer. The key `encoder_sparse_step` or
    `decoder_sparse_step` states n. Without this key, n is the number of layers divided by the number of layers with
    experts, or the number of layers if no layer shall have experts.
    """
    hidden = c.size("hidden_size")
    heads, head_dim = c.size("num_attention_heads"), c.size("d_kv")
    positions = RelativeBias(
        num_buckets=c.size("relative_attention_num_buckets"),
        max_distance=c.size("relative_attention_max_distance", 128),
        per_layer=c.model_type == "umt5",
    )
    window, global_weights = _longt5(c, hidden, heads) if c.model_type == "longt5" else (None, {})
    switch = c.model_type == "switch_transformers"

    def layer_of(ffn: FFN, *, causal: bool) -> Layer:
        """Return a layer of the decoder if `causal`, otherwise a layer of the encoder."""
        shape = {
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "head_dim": head_dim,
            "scale": 1.0,
        }
        local = None if causal else window
        self_attention = Attention(causal=causal, sliding_window=local, **shape)  # type: ignore[arg-type]
        cross = Attention(causal=False, **shape)  # type: ignore[arg-type]
        return Layer(mixer=self_attention, ffn=ffn, cross_attention=cross if causal else None)

    ffn = _t5_ffn(c)
    depth = c.size("num_hidden_layers")
    decoder_depth = c.size("num_decoder_layers", depth)
    expect_depths(c, depth, decoder_depth)

    def stack(count: int, *, causal: bool) -> list[tuple[str, Layer]]:
        """Return the layers of the decoder if `causal`, otherwise the layers of the encoder."""
        layers = []
        step = 0
        if switch:
            side = "decoder" if causal else "encoder"
            step = c.count(f"{side}_sparse_step", count // (c.count(f"num_sparse_{side}_layers") or 1))
        for index in range(count):
            has_experts = step > 0 and (index % step == 1 or step == 1)
            name = "moe" if has_experts else "block"
            layers.append((name, layer_of(_switch_experts(c, ffn) if has_experts else ffn, causal=causal)))
        return layers

    def with_globals(layers: list[tuple[str, Layer]]) -> list[tuple[str, Layer]]:
        """Return LongT5's encoder layers with the weights of its global tokens.

        Each layer gets a norm. The first layer also gets a table of biases.
        """
        changed = []
        for index, (name, layer) in enumerate(layers):
            extra = (global_weights["norm"], global_weights["bias"]) if index == 0 else (global_weights["norm"],)
            self_attention = block(layer.mixer, layer.ffn, extra=extra)
            changed.append((f"{name}_first" if index == 0 else name, self_attention))
        return changed

    encoder = stack(depth, causal=False)
    encoder_layers, encoder_pattern = per_layer(c, with_globals(encoder) if global_weights else encoder)
    c.ignore(
        "feed_forward_proj",
        "is_gated_act",
        "dense_act_fn",
        "add_router_probs",
        "router_type",
        "router_bias",
        "batch_prioritized_routing",
        "num_selected_experts",
        "n_positions",
    )
    if switch and not c.flag("tie_word_embeddings"):
        c.doubt("tie_word_embeddings = False: transformers creates more token tables, which are not counted")
    c.put("num_hidden_layers", decoder_depth)
    # transformers 5 writes tie_word_embeddings = true for all these types. If scale_decoder_outputs is false, the key
    # was false before. The output of mT5 is never scaled. LongT5 is always tied.
    tied = c.flag("tie_word_embeddings")
    scaled = c.flag("scale_decoder_outputs", tied) and c.model_type != "mt5"
    if c.model_type in ("mt5", "umt5") and tied and "tie_word_embeddings" in c:
        c.doubt(TIES_EVERY_HEAD)
    return decoder(
        c,
        stack(decoder_depth, causal=True),
        norm=norm(c),
        positions=positions,
        encoder=Stack(layers=encoder_layers, pattern=encoder_pattern, positions=positions),
        head=Head(scale=hidden**-0.5 if scaled else 1.0),
        tie_word_embeddings=c.model_type == "longt5" or (tied and (scaled or "scale_decoder_outputs" not in c)),
    )


def _t5_ffn(c: Config) -> Dense | Gated:
    """Return T5's feed-forward.

    The config key `feed_forward_proj` states its activation and whether it is gated. The keys `dense_act_fn` and
    `is_gated_act` have precedence over it, as in transformers. Switch has only `dense_act_fn` and no gate.
    """
    width = c.size("d_ff")
    if c.model_type == "switch_transformers":
        return Dense(intermediate_size=width, activation=activation(c, "dense_act_fn", default="relu"))
    projection = c.text("feed_forward_proj", "relu")
    first, *rest = projection.split("-")
    if rest and (first != "gated" or len(rest) > 1):
        raise c.error("feed_forward_proj", f"must be ACTIVATION or gated-ACTIVATION, not {projection[:40]}")
    stated = "gelu_new" if projection == "gated-gelu" else projection.removeprefix("gated-")
    act = activation(c, "dense_act_fn", default=stated)
    if c.flag("is_gated_act", bool(rest)):
        return Gated(intermediate_size=width, activation=act)
    return Dense(intermediate_size=width, activation=act)


def _switch_experts(c: Config, ffn: Dense | Gated) -> MoE:
    """Return Switch's experts. One expert processes each token."""
    return MoE(
        num_experts=c.size("num_experts"),
        num_experts_per_tok=1,
        intermediate_size=ffn.intermediate_size,
        activation=ffn.activation,
        gated=isinstance(ffn, Gated),
        router=Router(bias=c.flag("router_bias")),
        expert_capacity=c.optional_size("expert_capacity"),
    )


def _longt5(c: Config, hidden: int, heads: int) -> tuple[int, dict[str, ExtraWeight]]:
    """Return the width of LongT5's window in tokens, and the weights of its global tokens.

    The window has `local_radius` tokens on each side of the query. The dict of weights is empty if the attention is
    "local" instead of "transient-global".
    """
    kind = c.text("encoder_attention_type", "local")
    c.require("encoder_attention_type", "local", "transient-global")
    c.ignore("global_block_size")
    radius = c.size("local_radius")
    if kind != "transient-global":
        return 2 * radius + 1, {}
    c.doubt("encoder_attention_type = transient-global: the attention to summaries of blocks is not counted")
    buckets = c.size("relative_attention_num_buckets")
    bias = ExtraWeight(name="global_bias", shape=(buckets, heads), role="vector", component="attention_extra")
    return 2 * radius + 1, {
        "norm": ExtraWeight(name="global_norm", shape=(hidden,), role="vector", component="norms"),
        "bias": bias,
    }
