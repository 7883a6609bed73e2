"""Functions that importers share. They read the config keys that most models have, and build layers and models.

A typical importer reads the attention, the feed-forward and the position encoding. It joins them to a layer with
`block`, or with `mixture_layers` if some layers have experts. It returns the model with `decoder(...)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from llmbench.spec.ffn import FFN, Activation, Dense, Gated, MoE, Router, SharedExperts
from llmbench.spec.huggingface.activations import known_activation
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.layer_lists import checked_layers
from llmbench.spec.mixer import Attention, AttentionKind, LatentAttention, Mixer, QKNorm, branches
from llmbench.spec.mixer.cache_row import StateDType
from llmbench.spec.model import ExtraWeight, Layer, ModelSpec, NextTokenPrediction, Norm, Placement
from llmbench.spec.pattern import format_pattern
from llmbench.spec.position import Alibi, NoPositions, Positions, Rope


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
    count = checked_layers(c)
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
