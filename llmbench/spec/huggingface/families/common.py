"""What importers share: readers of the keys that most families have, and builders of layers and models.

An importer reads attention, feed-forward and positions, joins them with `block` (or `mixture_layers`, where some layers
have experts) and returns `decoder(...)`.
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
    """The activation that the first of `keys` with a value names.

    An unknown activation costs the same, so sizes stay exact, but the model cannot be built.
    """
    name = c.first(*(keys or ("hidden_act", "hidden_activation")))
    name = name if isinstance(name, str) else default
    name = _ACTIVATIONS.get(name, name)
    if name not in get_args(Activation):
        c.unbuildable(f"the activation `{name}`, which is counted as `silu`")
        name = "silu"
    return cast(Activation, name)


def expect_activation(c: Config, key: str, expected: Activation) -> None:
    """Mark the model as not buildable where a recurrent mixer has another activation, which costs the same."""
    name = activation(c, key, default=expected)
    if name != expected:
        c.unbuildable(f"{key} = `{name}` in recurrent layers, which are counted with `{expected}`")


def expect_silu(c: Config, key: str) -> None:
    """Expect SiLU in the convolution and the gate of a state-space mixer."""
    expect_activation(c, key, "silu")


def norm(
    c: Config, kind: str = "rmsnorm", *, bias: bool | None = None, weight: bool = True, unit_offset: bool = False
) -> Norm:
    """RMSNorm without a bias, or LayerNorm with one unless `bias` says otherwise; 1e-5 where no epsilon is stated."""
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
    """RoPE from either spelling: `rope_theta` with `rope_scaling`, or `rope_parameters`.

    `rope_parameters` may have an entry for each layer type, and `layer_type` chooses one. `partial` is the share of a
    head that is rotated where the config states none.
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
        theta, scaling = theta * alpha ** (rotated / (rotated - 2)), {}  # at every length, so it is a larger base
    elif alpha:
        c.unbuildable(f"rope_scaling.alpha = {alpha}, which is read for Hunyuan's dynamic rotation only")
    if rotated % 2 or (head_dim and not rotated):
        c.unbuildable(f"a rotation of {rotated} dimensions, which do not form pairs")
    return Rope(
        theta=theta,
        rotary_dim=None if rotated == head_dim or rotated < 1 else rotated,
        interleaved=interleaved,
        scaling=_rope_scaling(c, scaling),
    )


def expect_stated_rotation(c: Config) -> None:
    """Mark the model as not buildable where its config states no rotation and its class has a scaled default."""
    if not c.table("rope_parameters") and not c.table("rope_scaling"):
        c.unbuildable("the config has neither rope_parameters nor rope_scaling, and its class has a scaled default")


def expect_rope_type(c: Config) -> None:
    """Mark the model as not buildable where rope_scaling has the older key `type`, which its class does not read."""
    scaling = c.table("rope_scaling")
    if "type" in scaling and "rope_type" not in scaling:
        c.unbuildable("rope_scaling.type, which its class does not read: it reads rope_scaling.rope_type")


_ROPE_KINDS = ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional")


def _rope_kind(raw: dict[str, Any]) -> Any:
    kind: Any = raw.get("rope_type") or raw.get("type")
    return {"su": "longrope", "ntk": "dynamic", "mrope": "default"}.get(str(kind), kind)


def _rope_scaling(c: Config, raw: dict[str, Any]) -> RopeScaling | None:
    kind = _rope_kind(raw)
    if kind in (None, "default"):
        return None
    if kind not in _ROPE_KINDS:
        c.unbuildable(f"the rotation `{str(kind)[:40]}` is not known; known are {', '.join(_ROPE_KINDS)}")
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
    """The width of a head: `head_dim`, or hidden_size / num_attention_heads."""
    explicit = c.optional_size("head_dim")
    if explicit is not None:
        return explicit
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    if hidden % heads:
        c.doubt(f"num_attention_heads {heads} does not divide hidden_size {hidden}, and head_dim is missing")
    return max(1, hidden // heads)


def expect_divisible_heads(c: Config) -> None:
    """Raise SpecError where the heads do not divide hidden_size and the config has no head_dim."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    if "head_dim" not in c and hidden % heads:
        raise c.error("hidden_size", f"{hidden} is not a multiple of num_attention_heads {heads}")


HEAD_NORM = QKNorm()
"""RMSNorm over each head of q and of k."""


def attention(c: Config, **fields: Any) -> Attention:
    """Attention by the usual keys; `fields` replace or add fields of the spec."""
    heads = fields.pop("num_attention_heads", None) or c.size("num_attention_heads")
    kv_heads = fields.pop("num_key_value_heads", None) or c.size("num_key_value_heads", heads)
    head_dim = fields.pop("head_dim", None) or head_dim_of(c)
    return Attention(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, **fields)


def latent_attention(c: Config, **fields: Any) -> LatentAttention:
    """DeepSeek's latent attention by its keys; a bias is on the latents and the output."""
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
    """A gated feed-forward (SwiGLU, GEGLU): biases by `mlp_bias` unless `bias` is given."""
    return Gated(
        intermediate_size=width or c.size("intermediate_size"),
        activation=activation(c),
        bias=c.flag("mlp_bias") if bias is None else bias,
    )


def dense(c: Config, *, bias: bool, width: int | None = None, keys: Sequence[str] = (), default: str = "gelu") -> Dense:
    """A feed-forward of two matrices; `keys` are those of its activation, `default` is the activation without one."""
    return Dense(
        intermediate_size=width or c.size("intermediate_size"),
        activation=activation(c, *keys, default=default),
        bias=bias,
    )


TOPK_SOFTMAX = Router(scores="softmax_topk")
"""Softmax over the logits of the chosen experts alone (Mixtral)."""

SIGMOID = Router(scores="sigmoid", correction="buffer", normalize=True)
"""Sigmoid scores with a stored correction; the chosen weights sum to one (DeepSeek-V3)."""


def moe(
    c: Config,
    *,
    experts: str = "num_experts",
    width: str = "moe_intermediate_size",
    router: Router | None = None,
    shared: SharedExperts | None = None,
    **fields: Any,
) -> MoE:
    """Experts by the usual keys; `experts` and `width` are the names of the keys for their number and their width."""
    router, count = router or Router(), c.size(experts)
    chosen = fields.pop("num_experts_per_tok", None) or c.size("num_experts_per_tok")
    if chosen > count // router.n_group * router.topk_group:
        c.unbuildable(f"num_experts_per_tok = {chosen} is more than the chosen groups of experts have")
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
    """DeepSeek's router: it chooses groups of experts, then experts by their score and a stored correction.

    DeepSeek-V2 has no groups with topk_method = greedy, and its class never makes the weights sum to one.
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
    """Shared experts, or None where there are none; `count` is the key of their number, `width` the width of one."""
    experts = c.count(count)
    return SharedExperts(intermediate_size=experts * width, bias=bias, gate=gate) if experts else None


MOST_LAYERS = 10_000
"""The most layers of a model that is read."""


def num_layers(c: Config) -> int:
    """Layers of the decoder, at most 10,001: `decoder` refuses more than 10,000."""
    return min(c.size("num_hidden_layers"), MOST_LAYERS + 1)


def expect_depths(c: Config, encoder: int, decoder: int) -> None:
    """Raise SpecError where a stack of an encoder-decoder has more than 10,000 layers."""
    if max(encoder, decoder) > MOST_LAYERS:
        raise c.error("num_layers", f"{max(encoder, decoder)} is more than {MOST_LAYERS}")


def layer_size(c: Config, key: str, value: Any) -> int:
    """An entry of a list of sizes with one entry per layer. Raises SpecError unless it is a whole number from 1."""
    if type(value) is not int or not 1 <= value <= 2**31:
        raise c.error(key, f"has the entry {str(value)[:40]}; each must be a whole number of at least 1")
    return value


def layer_types(c: Config, default: Iterable[str]) -> list[str]:
    """`layer_types` where the config has it, else `default`, which its class derives from other keys."""
    stated = c.entries("layer_types", _checked_layers(c))
    return list(default) if stated is None else [str(kind) for kind in stated]


def _checked_layers(c: Config) -> int:
    count = c.size("num_hidden_layers")
    if count > MOST_LAYERS:
        raise c.error("num_hidden_layers", f"{count} is more than {MOST_LAYERS}")
    return count


_NEWER_LAYER_TYPES = {"mamba": "linear_attention", "mamba2": "linear_attention", "attention": "full_attention"}


def newer_layer_type(kind: object) -> str:
    """The newer name of a layer type: "linear_attention" for "mamba", "full_attention" for "attention"."""
    return _NEWER_LAYER_TYPES.get(str(kind), str(kind))


def linear_layer_types(c: Config, default: list[str]) -> list[str]:
    """`layer_types` by their newer names; each is "linear_attention" or "full_attention"."""
    kinds = [newer_layer_type(kind) for kind in layer_types(c, default)]
    _expect_kinds(c, "layer_types", kinds, ("linear_attention", "full_attention"))
    return kinds


def _expect_kinds(c: Config, key: str, kinds: Iterable[Any], known: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in known:
            raise c.error(key, f"has the entry `{str(kind)[:40]}`; known are {', '.join(known)}")


def windowed_layers(c: Config, derived: Callable[[int], bool], *kinds: str) -> list[bool]:
    """Whether each layer has a window: by `layer_types`, or by its index as the class derives it.

    `kinds` are the names of layers with and without a window.
    """
    local, full = kinds or ("sliding_attention", "full_attention")
    names = layer_types(c, [local if derived(index) else full for index in range(num_layers(c))])
    _expect_kinds(c, "layer_types", names, (local, full))
    return [name == local for name in names]


def sparse_layers(c: Config, derived: Callable[[int], bool]) -> list[bool]:
    """Whether each layer has experts: by `mlp_layer_types`, or by its index as the class derives it."""
    count = num_layers(c)
    kinds = c.entries("mlp_layer_types", count)
    if kinds is None:
        return [derived(index) for index in range(count)]
    _expect_kinds(c, "mlp_layer_types", kinds, ("dense", "sparse"))
    return [kind == "sparse" for kind in kinds]


def sparse_after_first(c: Config, default: int = 0) -> list[bool]:
    """DeepSeek's rule: after `first_k_dense_replace` dense layers, every `moe_layer_freq`-th layer has experts."""
    first = c.count("first_k_dense_replace", default)
    frequency = c.get("moe_layer_freq")
    if isinstance(frequency, list):
        chosen = c.entries("moe_layer_freq", num_layers(c)) or []
        return sparse_layers(c, lambda index: index >= first and bool(chosen[index]))
    every = c.size("moe_layer_freq", 1)
    return sparse_layers(c, lambda index: index >= first and index % every == 0)


def block(mixer: Mixer | None, ffn: FFN | None, placement: Placement = "pre", **fields: Any) -> Layer:
    """A layer of one mixer and one feed-forward; either may be None."""
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
    """A (name, layer) for each layer of a model with experts.

    `mixers` is one mixer for all layers, or a (name, mixer) for each. `sparse` says which layers have experts; all have
    where `dense` is None. `extra` weights are in every layer, `sparse_extra` only in layers with experts.
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
    """The spec's `layers` and `pattern` from a (name, layer) for each layer: equal layers become one kind.

    Layers that differ under one name get a number behind it.
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
    """The model around its layers: one `Layer` for all, or a (name, layer) for each.

    Sizes and tying are read by the usual keys unless `fields` has them. A model without attention has no rotation,
    whatever its config states. Raises SpecError for more than 10,000 layers.
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
    """Whether a layer has attention, the only kind of mixer that applies a rotation or ALiBi."""
    return any(isinstance(mixer, AttentionKind) for layer in layers for mixer in branches(layer.mixer))


def prediction_modules(count: int, layers: list[tuple[str, object]]) -> NextTokenPrediction | None:
    """`count` multi-token-prediction modules, each with a layer like the model's last; None for none."""
    return NextTokenPrediction(count=count, layer=layers[-1][0]) if count else None


def matrix(name: str, component: Any, outputs: int, inputs: int) -> ExtraWeight:
    """A matrix of [outputs, inputs] that no field of the spec describes."""
    return ExtraWeight(name=name, shape=(outputs, inputs), role="matmul", component=component)


def vector(name: str, component: Any, *shape: int) -> ExtraWeight:
    """A vector, or a weight that is used like one, that no field of the spec describes."""
    return ExtraWeight(name=name, shape=shape, role="vector", component=component)
