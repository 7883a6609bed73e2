"""Functions that importers share. They read the config keys that most models have, and build layers and models.

A typical importer reads the attention, the feed-forward and the position encoding. It joins them to a layer with
`block`, or with `mixture_layers` if some layers have experts. It returns the model with `decoder(...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

from llmbench.spec.ffn import FFN, Activation, Dense, Gated, MoE, Router, SharedExperts
from llmbench.spec.huggingface.activations import known_activation
from llmbench.spec.huggingface.config import Config
from llmbench.spec.mixer import Attention, AttentionKind, LatentAttention, Mixer, QKNorm, branches
from llmbench.spec.mixer.cache_row import StateDType
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec, NextTokenPrediction, Norm, Placement
from llmbench.spec.pattern import format_pattern
from llmbench.spec.position import Alibi, NoPositions, Positions, Rope, RopeScaling


def activation(c: Config, *keys: str, default: str = "silu") -> Activation:
    """Return the activation function that the config states.

    - keys: the config keys that can state it. The first key that is not null counts. Without `keys`, these are
      hidden_act and hidden_activation.
    - default: the activation if none of the keys has a value.

    An unknown activation changes no figure. It is replaced by SiLU, and the model is marked as not buildable.
    """
    name = c.first_text(*(keys or ("hidden_act", "hidden_activation")), default=default)
    known = known_activation(name)
    if known is None:
        c.unbuildable(f"the activation `{name}` is unknown and is replaced by `silu`")
    return known or "silu"


def expect_activation(c: Config, key: str, expected: Activation) -> None:
    """Mark the model as not buildable if the config key `key` states another activation than `expected`.

    Recurrent mixers use this function, because they support one activation only. No figure depends on the activation.
    """
    name = activation(c, key, default=expected)
    if name != expected:
        c.unbuildable(f"{key} = `{name}`: recurrent layers support only `{expected}`")


def expect_silu(c: Config, key: str) -> None:
    """Mark the model as not buildable if the convolution and the gate of a state-space mixer do not use SiLU."""
    expect_activation(c, key, "silu")


def norm(
    c: Config, kind: str = "rmsnorm", *, bias: bool | None = None, weight: bool = True, unit_offset: bool = False
) -> Norm:
    """Return the norm of the model. Its epsilon is 1e-5 if the config has no key for the epsilon.

    - kind: "rmsnorm" or "layernorm".
    - bias: the norm has a bias. None means no bias for RMSNorm and a bias for LayerNorm.
    - weight: the norm has a trained factor per channel.
    - unit_offset: the factor per channel is 1 + weight instead of weight (Gemma).
    """
    keys = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "layernorm_epsilon")
    return Norm(
        kind="layernorm" if kind == "layernorm" else "rmsnorm",
        bias=(kind == "layernorm") if bias is None else bias,
        weight=weight,
        eps=c.first_number(*keys, default=1e-5),
        unit_offset=unit_offset,
    )


def rope(
    c: Config, *, head_dim: int, layer_type: str | None = None, interleaved: bool = False, partial: float = 1.0
) -> Rope:
    """Return the RoPE that the config states in `rope_scaling` or `rope_parameters`, and in keys beside them.

    - head_dim: number of dimensions per head.
    - layer_type: the layer type whose RoPE is returned, because `rope_parameters` may have one entry per layer type.
    - interleaved: RoPE rotates pairs of neighbouring dimensions.
    - partial: the rotated share of each head, if the config does not state a share.
    """
    stated = _stated_rotation(c, layer_type)
    usual = c.get("default_theta")  # of the model's class; an object in models whose layer types differ in their base
    usual = usual if isinstance(usual, (int, float)) else 10000.0
    theta = stated.number("rope_theta", c.first_number("rope_theta", "rotary_emb_base", default=usual))
    keys = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_percent")
    fraction = stated.number("partial_rotary_factor", c.first_number(*keys, default=partial))
    if not 0 <= fraction <= 1:
        raise c.error("partial_rotary_factor", f"must be between 0 and 1, not {fraction!r}")
    rotated = c.optional_size("rotary_dim") or int(head_dim * fraction)
    c.ignore("rope_interleave", "rope_interleaved", "max_rope_position", "original_max_position_embeddings")
    kind, alpha = _rope_kind(stated), stated.number("alpha", 0.0)
    if alpha and c.model_type.startswith("hunyuan_v1") and kind == "dynamic":
        # Hunyuan's class scales RoPE at every sequence length. This is the same as a larger base.
        theta, kind = theta * alpha ** (rotated / (rotated - 2)), "default"
    elif alpha:
        c.unbuildable(f"rope_scaling.alpha = {alpha} is supported only for the dynamic RoPE of Hunyuan")
    if rotated % 2 or (head_dim and not rotated):
        c.unbuildable(f"the config states RoPE for {rotated} dimensions per head, but RoPE rotates pairs of dimensions")
        rotated -= rotated % 2
    return Rope(
        theta=theta,
        rotary_dim=None if rotated == head_dim or rotated < 1 else rotated,
        interleaved=interleaved,
        scaling=_rope_scaling(c, kind, stated),
    )


def _stated_rotation(c: Config, layer_type: str | None) -> Config:
    """Return the object that states the RoPE of layers of one type.

    As in transformers, this is `rope_scaling`, unless it is missing or empty. Otherwise it is `rope_parameters`, or its
    entry for the layer type. The keys of this object have precedence over keys of the config with the same names.
    """
    scaling, parameters = c.table("rope_scaling"), c.table("rope_parameters")
    if scaling and parameters:
        c.unbuildable("the config has rope_scaling and rope_parameters, and transformers reads only one of them")
    if scaling or layer_type is None:
        return c.nested("rope_scaling", scaling) if scaling else c.nested("rope_parameters", parameters)
    if parameters and not any(isinstance(value, dict) for value in parameters.values()):
        c.unbuildable("rope_parameters states one RoPE, but the class of the model reads one for each layer type")
    all_types = c.nested("rope_parameters", parameters)
    if parameters.get(layer_type) is not None:
        return c.nested(f"rope_parameters.{layer_type}", all_types.table(layer_type))
    return all_types


def expect_stated_rotation(c: Config) -> None:
    """Mark the model as not buildable if its config has neither rope_parameters nor rope_scaling.

    Without these keys, the class of the model in transformers scales RoPE by default. Importers do not know this
    scaling.
    """
    if not c.table("rope_parameters") and not c.table("rope_scaling"):
        c.unbuildable(
            "the config has no rope_parameters or rope_scaling, and the default scaling of transformers is unsupported"
        )


def expect_rope_type(c: Config) -> None:
    """Mark the model as not buildable if rope_scaling has the older key `type` but not `rope_type`.

    The class of the model in transformers ignores the older key.
    """
    scaling = c.table("rope_scaling")
    if "type" in scaling and "rope_type" not in scaling:
        c.unbuildable("transformers ignores rope_scaling.type in this model: its class reads rope_scaling.rope_type")


def expect_fixed_rotation(c: Config) -> None:
    """Mark the model as not buildable if its config states something about RoPE that the class of the model ignores."""
    for key in ("rope_theta", "rope_scaling", "rope_parameters"):
        if key in c and c.get(key):
            c.unbuildable(f"transformers ignores {key} in this model: its class has a fixed RoPE")


_ROPE_KINDS = ("linear", "dynamic", "yarn", "llama3", "longrope", "proportional")


def _rope_kind(scaling: Config) -> str:
    kind = scaling.text("type", "default") if scaling.get("rope_type") is None else scaling.text("rope_type")
    return {"su": "longrope", "ntk": "dynamic", "mrope": "default"}.get(kind, kind)


def _rope_scaling(c: Config, kind: str, scaling: Config) -> RopeScaling | None:
    if kind == "default":
        return None
    if kind not in _ROPE_KINDS:
        c.unbuildable(f"the RoPE scaling `{kind[:40]}` is unknown; known are {', '.join(_ROPE_KINDS)}")
        return None
    original = _original_length(c, kind, scaling)
    longest, factor = c.size_or_none("max_position_embeddings"), scaling.optional_number("factor")
    if factor is None and kind == "yarn" and original and longest:
        factor = longest / original
    return RopeScaling(
        kind=cast(Any, kind),
        factor=factor or 1.0,
        original_max_position_embeddings=original,
        low_freq_factor=scaling.optional_number("low_freq_factor"),
        high_freq_factor=scaling.optional_number("high_freq_factor"),
        beta_fast=scaling.optional_number("beta_fast"),
        beta_slow=scaling.optional_number("beta_slow"),
        mscale=scaling.optional_number("mscale"),
        mscale_all_dim=scaling.optional_number("mscale_all_dim"),
        attention_factor=scaling.optional_number("attention_factor"),
        truncate=scaling.flag("truncate", True),
        short_factor=scaling.numbers("short_factor"),
        long_factor=scaling.numbers("long_factor"),
    )


def _original_length(c: Config, kind: str, scaling: Config) -> int | None:
    """Return the sequence length of the training before RoPE was scaled. None: max_position_embeddings.

    A class of transformers ignores the key outside `scaling`, unless the class itself has it, as that of Phi-3.
    """
    key = "original_max_position_embeddings"
    own, outer = scaling.size_or_none(key), c.size_or_none(key)
    if c.declares(key):
        return outer or own if kind in ("llama3", "yarn", "longrope") else own
    return own if c.has_class or key in scaling else outer


def head_dim_of(c: Config) -> int:
    """Return the number of dimensions per head: `head_dim`, or hidden_size / num_attention_heads if it is missing."""
    explicit = c.size_or_none("head_dim")
    if explicit is not None:
        return explicit
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    if hidden % heads:
        c.doubt(f"hidden_size {hidden} is not divisible by num_attention_heads {heads}, and head_dim is missing")
    return max(1, hidden // heads)


def expect_divisible_heads(c: Config) -> None:
    """Raise SpecError if hidden_size is not divisible by num_attention_heads and the config has no head_dim."""
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    if "head_dim" not in c and hidden % heads:
        raise c.error("hidden_size", f"{hidden} is not a multiple of num_attention_heads {heads}")


HEAD_NORM = QKNorm()
"""RMSNorm on each query head and on each key head."""


def attention(c: Config, **fields: Any) -> Attention:
    """Return attention with the head counts and the head width that the config states.

    `fields` are fields of Attention. They have precedence over the config.
    """
    heads = fields.pop("num_attention_heads", None) or c.size("num_attention_heads")
    kv_heads = fields.pop("num_key_value_heads", None) or c.size("num_key_value_heads", heads)
    head_dim = fields.pop("head_dim", None) or head_dim_of(c)
    return Attention(num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim, **fields)


def latent_attention(c: Config, **fields: Any) -> LatentAttention:
    """Return DeepSeek's multi-head latent attention (MLA) with the dimensions that the config states.

    `fields` are other fields of LatentAttention. `fields` can also contain `bias`: whether the output projection and
    the projections to the latents have biases. The default of `bias` is the config key `attention_bias`.
    """
    bias = fields.pop("bias", None)
    bias = c.flag("attention_bias") if bias is None else bias
    c.ignore("num_key_value_heads", "qk_head_dim")
    head_dim, rotated = c.optional_size("head_dim"), c.get("qk_rope_head_dim")
    share = c.table("rope_parameters").get("partial_rotary_factor", 1)
    if "head_dim" in c and head_dim and head_dim * share != rotated and not c.get("replaces_head_dim"):
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
    """Return a gated feed-forward (SwiGLU, GEGLU).

    - bias: its three matrices have biases. None: the config key `mlp_bias` decides.
    - width: the width between the matrices. None: the config key `intermediate_size` states it.
    """
    return Gated(
        intermediate_size=width or c.size("intermediate_size"),
        activation=activation(c),
        bias=c.flag("mlp_bias") if bias is None else bias,
    )


def dense(c: Config, *, bias: bool, width: int | None = None, keys: Sequence[str] = (), default: str = "gelu") -> Dense:
    """Return a feed-forward of two matrices.

    - bias: its two matrices have biases.
    - width: the width between the matrices. None: the config key `intermediate_size` states it.
    - keys: the config keys that can state the activation.
    - default: the activation if none of the keys has a value.
    """
    return Dense(
        intermediate_size=width or c.size("intermediate_size"),
        activation=activation(c, *keys, default=default),
        bias=bias,
    )


TOPK_SOFTMAX = Router(scores="softmax_topk")
"""Router with a softmax over the logits of the selected experts only (Mixtral)."""

SIGMOID = Router(scores="sigmoid", correction="buffer", normalize=True)
"""Router with sigmoid scores, a stored bias for load balancing, and expert weights that sum to one (DeepSeek-V3)."""


def moe(
    c: Config,
    *,
    experts: str = "num_experts",
    width: str = "moe_intermediate_size",
    router: Router | None = None,
    shared: SharedExperts | None = None,
    **fields: Any,
) -> MoE:
    """Return a mixture of experts.

    - experts: the config key of the number of routed experts.
    - width: the config key of the width of one routed expert.
    - router: None means a softmax over all experts.
    - fields: other fields of MoE. `num_experts_per_tok` and `activation` have precedence over the config.
    """
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
    """Return DeepSeek's router.

    The router selects groups of experts. In these groups, it selects the experts with the largest sum of score and
    load-balancing bias. DeepSeek-V2 with topk_method = greedy has no groups. The class of DeepSeek-V2 ignores
    norm_topk_prob, so the weights of the selected experts do not sum to one.

    - correction: "buffer" or "parameter", the kind of tensor that stores the load-balancing bias. None: there is no
      bias.
    - scores: "sigmoid" or "softmax".
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
    """Return the shared experts, or None if there are none.

    - count: the config key of the number of shared experts.
    - width: the width of one shared expert.
    - bias: the matrices of the shared experts have biases.
    - gate: a sigmoid gate multiplies their output.
    """
    experts = c.count(count)
    return SharedExperts(intermediate_size=experts * width, bias=bias, gate=gate) if experts else None


MOST_LAYERS = 10_000
"""The largest number of layers that an importer accepts."""


def num_layers(c: Config) -> int:
    """Return the number of layers of the decoder. A larger number than 10,001 is replaced by 10,001.

    `decoder` refuses a model with 10,001 layers. Importers build lists with one entry per layer before that. The bound
    keeps these lists short.
    """
    return min(c.size("num_hidden_layers"), MOST_LAYERS + 1)


def expect_depths(c: Config, encoder: int, decoder: int) -> None:
    """Raise SpecError if the encoder or the decoder has more than 10,000 layers."""
    if max(encoder, decoder) > MOST_LAYERS:
        raise c.error("num_layers", f"{max(encoder, decoder)} is more than {MOST_LAYERS}")


def layer_size(c: Config, key: str, value: Any) -> int:
    """Return `value`, an entry of a config list that has one dimension or count per layer.

    `key`: the config key of the list, for the message. Raises SpecError if `value` is not a whole number of at least 1.
    """
    if type(value) is not int or not 1 <= value <= 2**31:
        raise c.error(key, f"has the entry {str(value)[:40]}; each must be a whole number of at least 1")
    return value


def layer_sizes(c: Config, key: str, default: int | None = None) -> list[int]:
    """Return the dimension or count of each layer. The config key has one number for all layers, or a list.

    `default`: the number of all layers if the key is null or absent. None: the key must have a value.
    """
    count = num_layers(c)
    if isinstance(c.get(key), list):
        return [layer_size(c, key, size) for size in c.entries(key, count) or ()]
    return [c.size(key) if default is None else c.size(key, default)] * count


def layer_types(c: Config, default: Iterable[str]) -> list[str]:
    """Return the type of each layer, which the config key `layer_types` states.

    `default`: the types if the config does not state them. The class in transformers derives these types from other
    keys.
    """
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
    """Return the type of each layer: "linear_attention" or "full_attention".

    The types come from the config key `layer_types`. Older names of types are replaced. `default`: the types if the
    config does not state them. Raises SpecError for an unknown type.
    """
    kinds = [newer_layer_type(kind) for kind in layer_types(c, default)]
    _expect_kinds(c, "layer_types", kinds, ("linear_attention", "full_attention"))
    return kinds


def _expect_kinds(c: Config, key: str, kinds: Iterable[Any], known: Sequence[str]) -> None:
    for kind in kinds:
        if kind not in known:
            raise c.error(key, f"has the entry `{str(kind)[:40]}`; known are {', '.join(known)}")


def windowed_layers(c: Config, derived: Callable[[int], bool], *kinds: str) -> list[bool]:
    """Return one bool per layer: true if the layer has a sliding window.

    The config key `layer_types` states which layers have a window.

    - derived: the rule of the class in transformers, for configs without `layer_types`. This function gets the index of
      a layer and returns true if the layer has a window.
    - kinds: the layer types with and without a window. The default is "sliding_attention" and "full_attention".
    """
    local, full = kinds or ("sliding_attention", "full_attention")
    names = layer_types(c, [local if derived(index) else full for index in range(num_layers(c))])
    _expect_kinds(c, "layer_types", names, (local, full))
    return [name == local for name in names]


def sparse_layers(c: Config, derived: Callable[[int], bool]) -> list[bool]:
    """Return one bool per layer: true if the layer has experts.

    The config key `mlp_layer_types` states which layers have experts. `derived`: the rule of the class in transformers,
    for configs without `mlp_layer_types`. This function gets the index of a layer and returns true if the layer has
    experts.
    """
    count = num_layers(c)
    kinds = c.entries("mlp_layer_types", count)
    if kinds is None:
        return [derived(index) for index in range(count)]
    _expect_kinds(c, "mlp_layer_types", kinds, ("dense", "sparse"))
    return [kind == "sparse" for kind in kinds]


def sparse_after_first(c: Config, default: int = 0) -> list[bool]:
    """Return one bool per layer: true if the layer has experts. Without `mlp_layer_types`, DeepSeek's rule applies.

    By this rule, the first `first_k_dense_replace` layers are dense. After them, every `moe_layer_freq`-th layer has
    experts. If `moe_layer_freq` is a list, it has one entry per layer, which states whether the layer has experts.
    `default`: the number of dense layers if the config does not state it.
    """
    first = c.count("first_k_dense_replace", default)
    frequency = c.get("moe_layer_freq")
    if isinstance(frequency, list):
        chosen = c.entries("moe_layer_freq", num_layers(c)) or []
        return sparse_layers(c, lambda index: index >= first and bool(chosen[index]))
    every = c.size("moe_layer_freq", 1)
    return sparse_layers(c, lambda index: index >= first and index % every == 0)


def block(mixer: Mixer | None, ffn: FFN | None, placement: Placement = "pre", **fields: Any) -> Layer:
    """Return a layer with a mixer and a feed-forward. The mixer or the feed-forward may be None."""
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

    - mixers: one mixer for all layers, or a pair (name, mixer) per layer.
    - sparse: one bool per layer, true if the layer has experts.
    - experts: the feed-forward of the layers with experts.
    - dense: the feed-forward of the layers without experts. None means that all layers have experts.
    - extra: extra weights of each layer.
    - sparse_extra: extra weights of the layers with experts only.
    - fields: other fields of each Layer.
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
    """Return the fields `layers` and `pattern` of a spec. `kinds` contains a pair (name, layer) for each layer.

    Equal layers become one entry of `layers`. If different layers have the same name, a number is appended to the name.
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
    """Return the spec of a model with these layers.

    - layers: one Layer for all layers, or a pair (name, layer) for each layer.
    - positions: the position encoding. A model without attention has neither RoPE nor ALiBi, even if its config states
      one.
    - fields: other fields of ModelSpec. vocab_size, hidden_size and tie_word_embeddings come from the config if
      `fields` does not contain them.

    Raises SpecError for more than 10,000 layers.
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
        max_position_embeddings=c.size_or_none("max_position_embeddings"),
        norm=norm,
        positions=positions,
        **fields,
    )


def _attends(layers: Iterable[Layer]) -> bool:
    """Return whether any layer has attention. Only attention can use RoPE or ALiBi."""
    return any(isinstance(mixer, AttentionKind) for layer in layers for mixer in branches(layer.mixer))


def prediction_modules(count: int, layers: list[tuple[str, object]]) -> NextTokenPrediction | None:
    """Return `count` multi-token-prediction modules, or None if `count` is 0.

    Each module contains a layer of the same kind as the last layer of the model.
    """
    return NextTokenPrediction(count=count, layer=layers[-1][0]) if count else None


def matrix(name: str, component: Any, outputs: int, inputs: int) -> ExtraWeight:
    """Return an extra weight that is a matrix of shape [outputs, inputs]."""
    return ExtraWeight(name=name, shape=(outputs, inputs), role="matmul", component=component)


def vector(name: str, component: Any, *shape: int) -> ExtraWeight:
    """Return an extra weight of shape `shape` whose elements are factors or summands."""
    return ExtraWeight(name=name, shape=shape, role="vector", component=component)


def state_dtype(c: Config, key: str) -> StateDType | None:
    """Return the number format of recurrent states that a config asks for. None: the file does not say it."""
    names: dict[str, StateDType] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
    stated = c.text(key) if key in c else ""
    if stated not in ("", "auto", *names):
        raise c.error(key, f"must be one of {', '.join(names)}, not {stated[:40]!r}")
    return names.get(stated)
