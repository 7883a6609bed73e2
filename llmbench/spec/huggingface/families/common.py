"""Functions that importers share: they read the config keys that most families have, and build layers and models.

An importer reads attention, feed-forward and positions, joins them with `block` (or with `mixture_layers` if some
layers have experts) and returns `decoder(...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast, get_args

from llmbench.spec.ffn import FFN, Activation, Dense, Gated, MoE, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.mixer import Attention, AttentionKind, LatentAttention, Mixer, QKNorm, branches
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec, NextTokenPrediction, Norm, Placement
from llmbench.spec.pattern import format_pattern
from llmbench.spec.position import Alibi, NoPositions, Positions, Rope, RopeScaling

_ACTIVATIONS = {
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python": "gelu",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "swish": "silu",
    "swiglu": "silu",
    "geglu": "gelu",
    "relu_squared": "relu2",
}


def activation(c: Config, *keys: str, default: str = "silu") -> Activation:
    """Return the activation that the config states under the first of `keys` that has a value.

    An unknown activation does not change any figure, but the PyTorch model cannot be built.
    """
    name = c.first(*(keys or ("hidden_act", "hidden_activation")))
    name = name if isinstance(name, str) else default
    name = _ACTIVATIONS.get(name, name)
    if name not in get_args(Activation):
        c.unbuildable(f"the activation `{name}` is unknown and counted as `silu`")
        name = "silu"
    return cast(Activation, name)


def expect_activation(c: Config, key: str, expected: Activation) -> None:
    """Mark the model as not buildable if a recurrent mixer has another activation. No figure depends on the
    activation."""
    name = activation(c, key, default=expected)
    if name != expected:
        c.unbuildable(f"{key} = `{name}`: recurrent layers are described with `{expected}` only")


def expect_silu(c: Config, key: str) -> None:
    """Mark the model as not buildable if the convolution and the gate of a state-space mixer do not use SiLU."""
    expect_activation(c, key, "silu")


def norm(
    c: Config, kind: str = "rmsnorm", *, bias: bool | None = None, weight: bool = True, unit_offset: bool = False
) -> Norm:
    """Return the norm of the model. Its epsilon is 1e-5 if the config states none.

    `bias` is by default false for RMSNorm and true for LayerNorm.
    """
    eps = c.first(
        "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "layernorm_epsilon"
    )
    return Norm(
        kind="layernorm" if kind == "layernorm" else "rmsnorm",
        bias=(kind == "layernorm") if bias is None else bias,
        weight=weight,
        eps=float(eps) if isinstance(eps, (int, float)) and not isinstance(eps, bool) else 1e-5,
        unit_offset=unit_offset,
    )


def rope(
    c: Config, *, head_dim: int, layer_type: str | None = None, interleaved: bool = False, partial: float = 1.0
) -> Rope:
    """Return RoPE, read from `rope_theta` and `rope_scaling`, or from the newer key `rope_parameters`.

    `rope_parameters` may have an entry per layer type, and `layer_type` chooses one. `partial` is the rotated share of
    a head if the config states none.
    """
    scaling = c.table("rope_scaling")
    parameters = c.table("rope_parameters")
    if layer_type is not None and isinstance(parameters.get(layer_type), dict):
        parameters = parameters[layer_type]
    if not scaling and parameters.get("rope_type", "default") != "default":
        scaling = parameters
    theta = c.first("rope_theta", "rotary_emb_base", "default_theta")
    theta = parameters.get("rope_theta", theta)
    fraction = c.first("partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_percent")
    fraction = parameters.get("partial_rotary_factor", fraction)
    original = c.get("original_max_position_embeddings")
    if scaling and "original_max_position_embeddings" not in scaling and original is not None:
        scaling = {**scaling, "original_max_position_embeddings": original}
    c.ignore("rope_interleave", "rope_interleaved", "max_rope_position")
    explicit = c.get("rotary_dim")
    if isinstance(fraction, (int, float)) and not 0 <= fraction <= 1:
        raise c.error("partial_rotary_factor", f"must be between 0 and 1, not {fraction!r}")
    rotated = head_dim if not isinstance(fraction, (int, float)) else int(head_dim * fraction)
    if fraction is None:
        rotated = int(head_dim * partial)
    if isinstance(explicit, int) and explicit > 0:
        rotated = explicit
    theta = float(theta) if isinstance(theta, (int, float)) else 10000.0
    alpha = scaling.get("alpha")
    if alpha and c.model_type.startswith("hunyuan_v1") and _rope_kind(scaling) == "dynamic":
        theta, scaling = (
            theta * alpha ** (rotated / (rotated - 2)),
            {},
        )  # the class scales at every length, which equals a larger base
    elif alpha:
        c.unbuildable(f"rope_scaling.alpha = {alpha} is supported only for Hunyuan's dynamic rotation")
    if rotated % 2 or (head_dim and not rotated):
        c.unbuildable(f"a rotation of {rotated} dimensions, but dimensions are rotated in pairs")
    return Rope(
        theta=theta,
        rotary_dim=None if rotated == head_dim or rotated < 1 else rotated,
        interleaved=interleaved,
        scaling=_rope_scaling(c, scaling),
    )


def expect_stated_rotation(c: Config) -> None:
    """Mark the model as not buildable if its config states no rotation. Its class then scales the rotation by
    default."""
    if not c.table("rope_parameters") and not c.table("rope_scaling"):
        c.unbuildable(
            "the config states no rope_parameters or rope_scaling, and the scaled default of its class is not supported"
        )


def expect_rope_type(c: Config) -> None:
    """Mark the model as not buildable if rope_scaling has the older key `type`, which the class does not read."""
    scaling = c.table("rope_scaling")
    if "type" in scaling and "rope_type" not in scaling:
        c.unbuildable("the class of this model ignores rope_scaling.type: it reads rope_scaling.rope_type")


_ROPE_KINDS = ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional")


def _rope_kind(raw: dict[str, Any]) -> Any:
    kind: Any = raw.get("rope_type") or raw.get("type")
    return {"su": "longrope", "ntk": "dynamic", "mrope": "default"}.get(str(kind), kind)


def _rope_scaling(c: Config, raw: dict[str, Any]) -> RopeScaling | None:
    kind = _rope_kind(raw)
    if kind in (None, "default"):
        return None
    if kind not in _ROPE_KINDS:
        c.unbuildable(f"the rotation `{str(kind)[:40]}` is unknown; known are {', '.join(_ROPE_KINDS)}")
        return None

    def number(key: str) -> float | None:
        value = raw.get(key)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    original, longest = raw.get("original_max_position_embeddings"), c.get("max_position_embeddings")
    factor = number("factor")
    if factor is None and kind == "yarn" and type(original) is int and type(longest) is int and original > 0:
        factor = longest / original
    return RopeScaling(
        kind=kind,
        factor=factor or 1.0,
        original_max_position_embeddings=original if type(original) is int and original > 0 else None,
        low_freq_factor=number("low_freq_factor"),
        high_freq_factor=number("high_freq_factor"),
        beta_fast=number("beta_fast"),
        beta_slow=number("beta_slow"),
        mscale=number("mscale"),
        mscale_all_dim=number("mscale_all_dim"),
        attention_factor=number("attention_factor"),
        truncate=bool(raw.get("truncate", True)),
        short_factor=_factors(raw.get("short_factor")),
        long_factor=_factors(raw.get("long_factor")),
    )


def _factors(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        return ()
    return tuple(float(x) for x in value if isinstance(x, (int, float)))


def head_dim_of(c: Config) -> int:
    """Return the width of a head: `head_dim`, or hidden_size / num_attention_heads."""
    explicit = c.optional_size("head_dim")
    if explicit is not None:
        return explicit
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    if hidden % heads:
        c.doubt(f"num_attention_heads {heads} does not divide hidden_size {hidden}, and head_dim is missing")
    return max(1, hidden // heads)


def expect_divisible_heads(c: Config) -> None:
    """Raise SpecError if hidden_size is not divisible by the number of heads and the config has no head_dim."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    if "head_dim" not in c and hidden % heads:
        raise c.error("hidden_size", f"{hidden} is not a multiple of num_attention_heads {heads}")


HEAD_NORM = QKNorm()
"""RMSNorm over each query head and each key head."""


def attention(c: Config, **fields: Any) -> Attention:
    """Return attention, read from the usual config keys. `fields` replaces or adds fields of the spec."""
    heads = fields.pop("num_attention_heads", None) or c.size("num_attention_heads")
    kv_heads = fields.pop("num_key_value_heads", None) or c.size("num_key_value_heads", heads)
    head_dim = fields.pop("head_dim", None) or head_dim_of(c)
    return Attention(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, **fields)


def latent_attention(c: Config, **fields: Any) -> LatentAttention:
    """Return DeepSeek's latent attention. `bias` is for the projections to the latents and for the output
    projection."""
    bias = fields.pop("bias", None)
    bias = c.flag("attention_bias") if bias is None else bias
    c.ignore("num_key_value_heads", "qk_head_dim")
    head_dim, rotated = c.get("head_dim"), c.get("qk_rope_head_dim")
    if head_dim not in (None, rotated):
        c.unbuildable(f"head_dim {head_dim} differs from qk_rope_head_dim {rotated}")
    return LatentAttention(
        num_attention_heads=c.size("num_attention_heads"),
        q_lora_rank=c.optional_size("q_lora_rank"),
        kv_lora_rank=c.size("kv_lora_rank"),
        qk_nope_head_dim=c.size("qk_nope_head_dim"),
        qk_rope_head_dim=c.count("qk_rope_head_dim"),
        v_head_dim=c.size("v_head_dim"),
        latent_bias=bias,
        output_bias=bias,
        **fields,
    )


def gated(c: Config, *, bias: bool | None = None, width: int | None = None) -> Gated:
    """Return a gated feed-forward (SwiGLU, GEGLU). `bias` replaces the config key `mlp_bias`."""
    return Gated(
        intermediate_size=width or c.size("intermediate_size"),
        activation=activation(c),
        bias=c.flag("mlp_bias") if bias is None else bias,
    )


def dense(c: Config, *, bias: bool, width: int | None = None, keys: Sequence[str] = (), default: str = "gelu") -> Dense:
    """Return a feed-forward of two matrices. `keys` are the config keys of its activation, `default` is its activation
    if the config has none of them."""
    return Dense(
        intermediate_size=width or c.size("intermediate_size"),
        activation=activation(c, *keys, default=default),
        bias=bias,
    )


TOPK_SOFTMAX = Router(scores="softmax_topk")
"""Router with a softmax over the logits of the selected experts only (Mixtral)."""

SIGMOID = Router(scores="sigmoid", correction="buffer", normalize=True)
"""Router with sigmoid scores, a stored correction, and weights that sum to one (DeepSeek-V3)."""


def moe(
    c: Config,
    *,
    experts: str = "num_experts",
    width: str = "moe_intermediate_size",
    router: Router | None = None,
    shared: SharedExperts | None = None,
    **fields: Any,
) -> MoE:
    """Return a mixture of experts. `experts` and `width` name the config keys of the number and the width of
    experts."""
    router, count = router or Router(), c.size(experts)
    chosen = fields.pop("num_experts_per_tok", None) or c.size("num_experts_per_tok")
    if chosen > count // router.n_group * router.topk_group:
        c.unbuildable(f"num_experts_per_tok = {chosen} is more than the number of experts in the selected groups")
    return MoE(
        num_experts=count,
        num_experts_per_tok=chosen,
        intermediate_size=c.size(width),
        activation=fields.pop("activation", None) or activation(c),
        router=router,
        shared=shared,
        **fields,
    )


def deepseek_router(c: Config, *, correction: str | None = "buffer", scores: str = "sigmoid") -> Router:
    """Return DeepSeek's router. It selects groups of experts, then experts by their score plus a stored correction.

    DeepSeek-V2 with topk_method = greedy has no groups. Its class never divides the weights by their sum.
    """
    v2 = c.model_type == "deepseek_v2"
    greedy = v2 and c.text("topk_method") == "greedy"
    if greedy:
        c.ignore("n_group", "topk_group")
    return Router(
        scores=cast(Any, scores),
        correction=cast(Any, correction),
        normalize=c.flag("norm_topk_prob") and not v2,
        scale=c.number("routed_scaling_factor", 1.0),
        n_group=1 if greedy else c.size("n_group", 1),
        topk_group=1 if greedy else c.size("topk_group", 1),
    )


def shared_experts(
    c: Config, count: str, width: int, *, bias: bool = False, gate: bool = False
) -> SharedExperts | None:
    """Return the shared experts, or None without any. `count` is the config key of their number, `width` the width of
    one."""
    experts = c.count(count)
    return SharedExperts(intermediate_size=experts * width, bias=bias, gate=gate) if experts else None


MOST_LAYERS = 10_000
"""The largest number of layers that an importer accepts."""


def num_layers(c: Config) -> int:
    """Return the number of layers of the decoder, cut to 10,001. `decoder` refuses more than 10,000 layers."""
    return min(c.size("num_hidden_layers"), MOST_LAYERS + 1)


def expect_depths(c: Config, encoder: int, decoder: int) -> None:
    """Raise SpecError if the encoder or the decoder has more than 10,000 layers."""
    if max(encoder, decoder) > MOST_LAYERS:
        raise c.error("num_layers", f"{max(encoder, decoder)} is more than {MOST_LAYERS}")


def layer_size(c: Config, key: str, value: Any) -> int:
    """Return an entry of a list with one dimension or count per layer. Raises SpecError if it is not a whole number of
    at least 1."""
    if type(value) is not int or not 1 <= value <= 2**31:
        raise c.error(key, f"has the entry {str(value)[:40]}; each must be a whole number of at least 1")
    return value


def layer_types(c: Config, default: Iterable[str]) -> list[str]:
    """Return `layer_types` of the config, or `default`, which the class derives from other keys."""
    stated = c.entries("layer_types", _checked_layers(c))
    return list(default) if stated is None else [str(kind) for kind in stated]


def _checked_layers(c: Config) -> int:
    count = c.size("num_hidden_layers")
    if count > MOST_LAYERS:
        raise c.error("num_hidden_layers", f"{count} is more than {MOST_LAYERS}")
    return count


_NEWER_LAYER_TYPES = {"mamba": "linear_attention", "mamba2": "linear_attention", "attention": "full_attention"}


def newer_layer_type(kind: object) -> str:
    """Return the newer name of a layer type: "linear_attention" for "mamba", "full_attention" for "attention"."""
    return _NEWER_LAYER_TYPES.get(str(kind), str(kind))


def linear_layer_types(c: Config, default: list[str]) -> list[str]:
    """Return `layer_types` with newer names: each entry is "linear_attention" or "full_attention"."""
    kinds = [newer_layer_type(kind) for kind in layer_types(c, default)]
    _expect_kinds(c, "layer_types", kinds, ("linear_attention", "full_attention"))
    return kinds


def _expect_kinds(c: Config, key: str, kinds: Iterable[Any], known: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in known:
            raise c.error(key, f"has the entry `{str(kind)[:40]}`; known are {', '.join(known)}")


def windowed_layers(c: Config, derived: Callable[[int], bool], *kinds: str) -> list[bool]:
    """Return whether each layer has a window, read from `layer_types` or derived from the layer's index.

    `derived` is the rule of the class. `kinds` are the names of layer types with and without a window.
    """
    local, full = kinds or ("sliding_attention", "full_attention")
    names = layer_types(c, [local if derived(index) else full for index in range(num_layers(c))])
    _expect_kinds(c, "layer_types", names, (local, full))
    return [name == local for name in names]


def sparse_layers(c: Config, derived: Callable[[int], bool]) -> list[bool]:
    """Return whether each layer has experts, read from `mlp_layer_types` or derived from the layer's index.

    `derived` is the rule of the class.
    """
    count = num_layers(c)
    kinds = c.entries("mlp_layer_types", count)
    if kinds is None:
        return [derived(index) for index in range(count)]
    _expect_kinds(c, "mlp_layer_types", kinds, ("dense", "sparse"))
    return [kind == "sparse" for kind in kinds]


def sparse_after_first(c: Config, default: int = 0) -> list[bool]:
    """Return whether each layer has experts by DeepSeek's rule.

    The first `first_k_dense_replace` layers are dense. After them, every `moe_layer_freq`-th layer has experts.
    """
    first = c.count("first_k_dense_replace", default)
    frequency = c.get("moe_layer_freq")
    if isinstance(frequency, list):
        chosen = c.entries("moe_layer_freq", num_layers(c)) or []
        return sparse_layers(c, lambda index: index >= first and bool(chosen[index]))
    every = c.size("moe_layer_freq", 1)
    return sparse_layers(c, lambda index: index >= first and index % every == 0)


def block(mixer: Mixer | None, ffn: FFN | None, placement: Placement = "pre", **fields: Any) -> Layer:
    """Return a layer with a mixer and a feed-forward. Each of them may be None."""
    return Layer(mixer=mixer, ffn=ffn, placement=placement, **fields)


def mixture_layers(
    mixers: Mixer | Sequence[tuple[str, Mixer]],
    sparse: Iterable[bool],
    experts: MoE,
    dense: Gated | None,
    placement: Placement = "pre",
    *,
    extra: tuple[ExtraWeight, ...] = (),
    sparse_extra: tuple[ExtraWeight, ...] = (),
    **fields: Any,
) -> list[tuple[str, Layer]]:
    """Return a pair (name, layer) for each layer of a model with experts.

    `mixers` is one mixer for all layers, or a pair (name, mixer) per layer. `sparse` tells per layer whether it has
    experts. If `dense` is None, all layers have experts. The weights `extra` are in every layer, the weights
    `sparse_extra` only in layers with experts.
    """
    layers = []
    flags = list(sparse)
    named = list(mixers) if isinstance(mixers, Sequence) else [("", mixers)] * len(flags)
    for (name, mixer), has_experts in zip(named, flags, strict=True):
        ffn: FFN = experts if has_experts or dense is None else dense
        kind = "moe" if isinstance(ffn, MoE) else "dense"
        weights = extra + (sparse_extra if isinstance(ffn, MoE) else ())
        layers.append((f"{name}_{kind}" if name else kind, block(mixer, ffn, placement, extra=weights, **fields)))
    return layers


def per_layer(c: Config, kinds: Iterable[tuple[str, Layer]]) -> tuple[dict[str, Layer], str]:
    """Return the fields `layers` and `pattern` of a spec, from a pair (name, layer) for each layer.

    Equal layers become one kind. Different layers with the same name get a number after the name.
    """
    names: list[str] = []
    layers: dict[str, Layer] = {}
    for stem, layer in kinds:
        name = next((known for known, same in layers.items() if same == layer), None)
        if name is None:
            name, number = stem, 2
            while name in layers:
                name, number = f"{stem}{number}", number + 1
            layers[name] = layer
        names.append(name)
    return layers, format_pattern(names)


def decoder(
    c: Config,
    layers: Layer | Iterable[tuple[str, Layer]],
    *,
    norm: Norm,
    positions: Positions | None = None,
    **fields: Any,
) -> ModelSpec:
    """Return the spec of a decoder. `layers` is one layer for all, or a pair (name, layer) for each.

    vocab_size, hidden_size and tie_word_embeddings come from the config unless `fields` has them. A model without
    attention gets no rotation, even if its config states one. Raises SpecError for more than 10,000 layers.
    """
    count = _checked_layers(c)
    if isinstance(layers, Layer):
        kinds, pattern = {"block": layers}, f"{count}*block"
    else:
        kinds, pattern = per_layer(c, layers)
    if positions is None or (isinstance(positions, (Rope, Alibi)) and not _attends(kinds.values())):
        positions = NoPositions()
    fields.setdefault("tie_word_embeddings", c.flag("tie_word_embeddings"))
    return ModelSpec(
        name=fields.pop("name", c.model_type),
        source=fields.pop("source", "Hugging Face config"),
        family=c.model_type,
        layers=kinds,
        pattern=pattern,
        vocab_size=fields.pop("vocab_size", None) or c.size("vocab_size"),
        hidden_size=fields.pop("hidden_size", None) or c.size("hidden_size"),
        max_position_embeddings=c.optional_size("max_position_embeddings"),
        norm=norm,
        positions=positions,
        **fields,
    )


def _attends(layers: Iterable[Layer]) -> bool:
    """Return whether a layer has attention, because only attention uses RoPE or ALiBi."""
    return any(isinstance(mixer, AttentionKind) for layer in layers for mixer in branches(layer.mixer))


def prediction_modules(count: int, layers: list[tuple[str, object]]) -> NextTokenPrediction | None:
    """Return `count` multi-token-prediction modules, each with a layer of the same kind as the last layer of the
    model."""
    return NextTokenPrediction(count=count, layer=layers[-1][0]) if count else None


def matrix(name: str, component: Any, outputs: int, inputs: int) -> ExtraWeight:
    """Return an extra matrix of shape [outputs, inputs], which no field of the spec describes."""
    return ExtraWeight(name=name, shape=(outputs, inputs), role="matmul", component=component)


def vector(name: str, component: Any, *shape: int) -> ExtraWeight:
    """Return an extra vector, or a weight with elementwise use, which no field of the spec describes."""
    return ExtraWeight(name=name, shape=shape, role="vector", component=component)
