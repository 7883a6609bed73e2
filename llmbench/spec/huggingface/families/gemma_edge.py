"""Gemma 3n and 4: per-layer embeddings, shared keys and values, global heads of other shapes."""

from __future__ import annotations

from llmbench.spec.ffn import FFN, Gated, MoE, Router
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.families import family
from llmbench.spec.huggingface.parts import (
    activation,
    attention,
    block,
    decoder,
    gated,
    layer_types,
    norm,
    rope,
)
from llmbench.spec.mixer import QKNorm
from llmbench.spec.model import Embedding, ExtraWeight, Head, Layer, ModelSpec
from llmbench.spec.position import Rope


@family("gemma3n_text")
def gemma3n(c: Config) -> ModelSpec:
    """Gemma 3n: four streams of hidden states mixed by AltUp, LAuReL beside attention, per-layer embeddings;
    the last layers share keys and values."""
    c.note("FLOPs leave out AltUp's mixing of its streams, which multiplies with no stored matrix (under 0.1%)")
    hidden, streams, rank = c.size("hidden_size"), c.size("altup_num_inputs"), c.size("laurel_rank")
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = layer_types(c, ["full_attention" if (i + 1) % 5 == 0 else "sliding_attention" for i in range(count)])
    widths = c.get("intermediate_size")
    if isinstance(widths, list) and len(widths) != count:
        raise c.error("intermediate_size", f"must be a number or {count} of them")
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
    layer_extra += _per_layer_input(c)
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
        ffn = gated(c, bias=False, width=_width(c, widths[index]) if isinstance(widths, list) else None)
        name = ("local" if local else "global") + ("_shared" if index >= first_shared else "")
        layers.append((name, block(mixer, ffn, "sandwich", extra=tuple(layer_extra))))
    extra = _per_layer_tables(c, count)
    for index in range(streams - 1):
        for name in ("altup_projections", "altup_unembed_projections"):
            extra.append(ExtraWeight(name=f"{name}.{index}", shape=(hidden, hidden), role="matmul"))
    return _gemma_model(c, layers, extra, attention(c).head_dim)


@family("gemma4_text", "gemma4_unified_text")
def gemma4(c: Config) -> ModelSpec:
    """Gemma 4: global layers have heads of their own shape and may take values from keys; a stored scale a
    layer; in its sizes also per-layer embeddings and shared keys (E2B, E4B), or experts beside the
    feed-forward (26B-A4B). The last layer is global whatever the config says."""
    count = min(c.size("num_hidden_layers"), 10_001)
    kinds = layer_types(c, ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(count)])
    kinds[-1:] = ["full_attention"]
    window = c.window()
    if c.get("use_bidirectional_attention") == "all":
        c.doubt("attention that sees both sides (use_bidirectional_attention = all) is counted as causal")
    bias = c.flag("attention_bias")
    global_dim = c.size("global_head_dim", 512)
    keys_are_values = c.flag("attention_k_eq_v")
    global_heads = c.optional_size("num_global_key_value_heads") if keys_are_values else None
    c.ignore("num_global_key_value_heads")
    local_positions = _rotation(c, "sliding_attention", attention(c).head_dim, 10_000.0)
    first_shared = _first_shared(c, count)
    double = c.flag("use_double_wide_mlp")
    hidden, width = c.size("hidden_size"), c.size("intermediate_size")
    layer_extra = [ExtraWeight(name="layer_scalar", shape=(1,), role="buffer"), *_per_layer_input(c)]
    experts = _experts(c, layer_extra, hidden) if c.flag("enable_moe_block") else None
    c.ignore("num_experts", "top_k_experts", "moe_intermediate_size", "expert_intermediate_size")
    layers: list[tuple[str, Layer]] = []
    for index, kind in enumerate(kinds):
        shared, local = index >= first_shared, kind == "sliding_attention"
        mixer = attention(
            c,
            head_dim=None if local else global_dim,
            num_key_value_heads=None if local else global_heads,
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
        plain = gated(c, bias=False, width=2 * width if double and shared else width)
        ffn: FFN = plain if experts is None else _beside(experts, plain)
        name = ("local" if local else "global") + ("_shared" if shared else "")
        layers.append((name, block(mixer, ffn, "sandwich", extra=tuple(layer_extra))))
    return _gemma_model(c, layers, _per_layer_tables(c, count), global_dim)


def _experts(c: Config, extra: list[ExtraWeight], hidden: int) -> MoE:
    """Gemma 4's experts: three norms of their own, a scale before the router and one behind each expert."""
    number = c.size("num_experts")
    for name in ("post_ffn_norm_1", "post_ffn_norm_2", "ffn_norm_2"):
        extra.append(ExtraWeight(name=name, shape=(hidden,), role="vector", component="norms"))
    extra.append(ExtraWeight(name="ffn.router.scale", shape=(hidden,), role="vector", component="router"))
    extra.append(ExtraWeight(name="ffn.router.expert_scale", shape=(number,), role="vector", component="router"))
    return MoE(
        num_experts=number,
        num_experts_per_tok=c.size("top_k_experts"),
        intermediate_size=c.size("moe_intermediate_size", c.get("expert_intermediate_size")),
        activation=activation(c),
        router=Router(normalize=True),
    )


def _beside(experts: MoE, plain: Gated) -> MoE:
    fields = {name: getattr(experts, name) for name in experts.__struct_fields__}
    return MoE(**{**fields, "beside": plain})


def _per_layer_input(c: Config) -> list[ExtraWeight]:
    """What each layer does with its own embedding of the token: gate, project and norm it."""
    hidden, width = c.size("hidden_size"), c.optional_size("hidden_size_per_layer_input")
    if width is None:
        return []
    return [
        ExtraWeight(name="per_layer_input_gate", shape=(width, hidden), role="matmul"),
        ExtraWeight(name="per_layer_projection", shape=(hidden, width), role="matmul"),
        ExtraWeight(name="per_layer_input_norm", shape=(hidden,), role="vector", component="norms"),
    ]


def _per_layer_tables(c: Config, count: int) -> list[ExtraWeight]:
    """The second embedding table, with a row of `hidden_size_per_layer_input` a layer for each token."""
    vocab, width = c.size("vocab_size_per_layer_input", 1), c.optional_size("hidden_size_per_layer_input")
    if width is None:
        return []
    hidden = c.size("hidden_size")
    return [
        ExtraWeight(name="embedding_per_layer", shape=(vocab, count * width), role="table", component="embedding"),
        ExtraWeight(name="per_layer_model_projection", shape=(count * width, hidden), role="matmul"),
        ExtraWeight(name="per_layer_projection_norm", shape=(width,), role="vector", component="norms"),
    ]


def _first_shared(c: Config, count: int) -> int:
    """The first layer that reads the keys and values of an earlier one of its type."""
    shared = c.count("num_kv_shared_layers")
    if shared >= count:
        raise c.error("num_kv_shared_layers", f"{shared} of {count} layers leaves none to share from")
    return count - shared


def _width(c: Config, value: object) -> int:
    if type(value) is not int or value < 1:
        raise c.error("intermediate_size", "must hold whole numbers of at least 1")
    return value


def _rotation(c: Config, kind: str, head_dim: int, base: float) -> Rope:
    """The rotation of a layer type, whose base the older configs keep in a key of its own."""
    positions = rope(c, head_dim=head_dim, layer_type=kind)
    given = c.table("rope_parameters").get(kind)
    return positions if isinstance(given, dict) else Rope(theta=base)


def _gemma_model(c: Config, layers: list[tuple[str, Layer]], extra: list[ExtraWeight], head_dim: int) -> ModelSpec:
    return decoder(
        c,
        layers,
        norm=norm(c),
        positions=rope(c, head_dim=head_dim, layer_type="full_attention"),
        embedding=Embedding(scale=c.size("hidden_size") ** 0.5),
        head=Head(soft_cap=c.optional_number("final_logit_softcapping")),
        extra=tuple(extra),
    )
