"""The pieces that importers of families are put together from: each reads the keys most families share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast, get_args

from llmbench.spec.ffn import FFN, Activation, Dense, Gated, MoE, Router, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.mixer import Attention, LatentAttention, Mixer
from llmbench.spec.model import Layer, ModelSpec, Norm, Placement
from llmbench.spec.pattern import format_pattern
from llmbench.spec.position import NoPositions, Positions, Rope, RopeScaling

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
    """The activation named by the first of `keys` that has a value; an unknown one costs the same, so that only the
    model cannot be built."""
    name = c.first(*(keys or ("hidden_act", "hidden_activation")))
    name = name if isinstance(name, str) else default
    name = _ACTIVATIONS.get(name, name)
    if name not in get_args(Activation):
        c.inexact(f"the activation `{name}`, which is counted as silu")
        name = "silu"
    return cast(Activation, name)


def norm(
    c: Config, kind: str = "rmsnorm", *, bias: bool | None = None, weight: bool = True, unit_offset: bool = False
) -> Norm:
    """RMSNorm, or LayerNorm with a bias unless it says otherwise."""
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
    """RoPE from either spelling: `rope_theta` and `rope_scaling`, or `rope_parameters` (possibly one a layer type)."""
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
    turned = head_dim if not isinstance(fraction, (int, float)) else int(head_dim * fraction)
    if fraction is None:
        turned = int(head_dim * partial)
    if isinstance(explicit, int) and explicit > 0:
        turned = explicit
    theta = float(theta) if isinstance(theta, (int, float)) else 10000.0
    alpha = scaling.get("alpha")
    if alpha and c.model_type.startswith("hunyuan_v1") and _rope_kind(scaling) == "dynamic":
        theta, scaling = theta * alpha ** (turned / (turned - 2)), {}  # a stretch that is always there
    elif alpha:
        c.inexact("a rotation stretched by `alpha`")
    if turned % 2 or (head_dim and not turned):
        c.inexact(f"a rotation of {turned} dimensions, which are not pairs")
    return Rope(
        theta=theta,
        rotary_dim=None if turned == head_dim or turned < 1 else turned,
        interleaved=interleaved,
        scaling=_rope_scaling(c, scaling),
    )


def states_rotation(c: Config) -> None:
    """For families whose class has a scaled rotation of its own: a config that says nothing means that one."""
    if not c.table("rope_parameters") and not c.table("rope_scaling"):
        c.inexact("the config leaves the rotation to its class")


def lays_scaling_over(c: Config) -> None:
    """For families whose class lays `rope_scaling` over a rotation of its own: it takes the kind by its newer key."""
    scaling = c.table("rope_scaling")
    if "type" in scaling and "rope_type" not in scaling:
        c.inexact("its class does not read `type` of rope_scaling, only `rope_type`")


def _rope_kind(raw: dict[str, Any]) -> Any:
    kind: Any = raw.get("rope_type") or raw.get("type")
    return {"su": "longrope", "ntk": "dynamic", "mrope": "default"}.get(str(kind), kind)


def _rope_scaling(c: Config, raw: dict[str, Any]) -> RopeScaling | None:
    kind = _rope_kind(raw)
    if kind in (None, "default"):
        return None
    if kind not in ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional"):
        c.inexact(f"the rotation `{str(kind)[:40]}` is not known")
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
    """Explicit, or hidden_size / num_attention_heads."""
    explicit = c.optional_size("head_dim")
    if explicit is not None:
        return explicit
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    if hidden % heads:
        c.doubt(f"num_attention_heads {heads} does not divide hidden_size {hidden}")
    return max(1, hidden // heads)


def attention(c: Config, **fields: Any) -> Attention:
    """Attention by the usual keys; `fields` say what the family does otherwise."""
    heads = fields.pop("num_attention_heads", None) or c.size("num_attention_heads")
    kv_heads = fields.pop("num_key_value_heads", None) or c.size("num_key_value_heads", heads)
    head_dim = fields.pop("head_dim", None) or head_dim_of(c)
    return Attention(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, **fields)


def latent_attention(c: Config, **fields: Any) -> LatentAttention:
    """DeepSeek's latent attention; `attention_bias` puts biases on the latents and the output."""
    bias = fields.pop("bias", None)
    bias = c.flag("attention_bias") if bias is None else bias
    c.ignore("num_key_value_heads", "qk_head_dim")
    if c.get("head_dim") not in (None, c.get("qk_rope_head_dim")):
        c.inexact("head_dim is not qk_rope_head_dim")
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
    """SwiGLU and its kin; `mlp_bias` where the family has that key."""
    return Gated(
        intermediate_size=width or c.size("intermediate_size"),
        activation=activation(c),
        bias=c.flag("mlp_bias") if bias is None else bias,
    )


def dense(c: Config, *, bias: bool, width: int | None = None, keys: Sequence[str] = (), default: str = "gelu") -> Dense:
    """Up, activation, down."""
    return Dense(
        intermediate_size=width or c.size("intermediate_size"),
        activation=activation(c, *keys, default=default),
        bias=bias,
    )


def moe(
    c: Config,
    *,
    experts: str = "num_experts",
    width: str = "moe_intermediate_size",
    router: Router | None = None,
    shared: SharedExperts | None = None,
    **fields: Any,
) -> MoE:
    """Experts by the usual keys; `experts` and `width` name the keys that differ between families."""
    router, count = router or Router(), c.size(experts)
    chosen = fields.pop("num_experts_per_tok", None) or c.size("num_experts_per_tok")
    if chosen > count // router.n_group * router.topk_group:
        c.inexact("a token chooses more experts than the groups that are open to it have")
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
    """Group-limited routing with an aux-loss-free correction. V2 has groups only by its method, and never makes the
    weights sum to one."""
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


def per_layer(c: Config, kinds: Iterable[tuple[str, Layer]]) -> tuple[dict[str, Layer], str]:
    """The `layers` and `pattern` of a list with one (name, layer) a layer: equal layers become one kind."""
    names: list[str] = []
    layers: dict[str, Layer] = {}
    for wanted, layer in kinds:
        name = next((known for known, same in layers.items() if same == layer), None)
        if name is None:
            name, again = wanted, 2
            while name in layers:
                name, again = f"{wanted}{again}", again + 1
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
    """The model around its layers: one `Layer` that all are like, or one (name, layer) each."""
    count = c.size("num_hidden_layers")
    if count > 10_000:
        raise c.error("num_hidden_layers", f"{count} is more than 10000")
    if isinstance(layers, Layer):
        kinds, pattern = {"block": layers}, f"{count}*block"
    else:
        kinds, pattern = per_layer(c, layers)
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
        positions=NoPositions() if positions is None else positions,
        **fields,
    )


def block(mixer: Mixer | None, ffn: FFN | None, placement: Placement = "pre", **fields: Any) -> Layer:
    """A layer."""
    return Layer(mixer=mixer, ffn=ffn, placement=placement, **fields)


def layer_types(c: Config, default: Iterable[str]) -> list[str]:
    """`layer_types` where the config has it, else what its class derives."""
    count = c.size("num_hidden_layers")
    if count > 10_000:
        raise c.error("num_hidden_layers", f"{count} is more than 10000")
    given = c.entries("layer_types", count)
    return [str(kind) for kind in given] if given is not None else list(default)
