"""The profile `eager`: how many kernels plain PyTorch launches for each op (implementation `standard`).

Each torch function that is not a view launches at least one kernel. The numbers follow the code of `llmbench/model`
and of its implementation `standard`. A test counts the functions of real models and compares each op.
"""

from __future__ import annotations

from typing import assert_never

from msgspec.structs import replace

from llmbench.sizing.launches.place import DENSE, NO_WORK, NORMS, PRODUCTS, SUMS, Place, Profile, Rule, named
from llmbench.sizing.lower.ffn import experts_read
from llmbench.spec.ffn import Activation, Dense, Gated, MoE
from llmbench.spec.mixer import Attention, LatentAttention, branches
from llmbench.spec.model import Layer
from llmbench.spec.position import (
    Alibi,
    LearnedPositions,
    NoPositions,
    Positions,
    RelativeBias,
    Rope,
    SinusoidalPositions,
)

_FUNCTIONS: dict[Activation, int] = {
    "relu": 1,
    "relu2": 2,
    "gelu": 1,
    "gelu_tanh": 1,
    "quick_gelu": 3,
    "silu": 1,
    "sigmoid": 1,
    "tanh": 1,
    "mish": 1,
}
"""Number of torch functions of an activation, without the product with `up`."""

_GATED_FUNCTIONS: dict[Activation, int] = {name: count + 1 for name, count in _FUNCTIONS.items()} | {"swiglu_oai": 7}
"""The same for an activation with a gate, with the product."""


def activation(place: Place) -> int | None:
    functions = _GATED_FUNCTIONS if place.gated else _FUNCTIONS
    return None if place.activation is None else functions.get(place.activation)


def _head_activation(place: Place) -> int | None:
    ffn = place.spec.layers[place.spec.order[0]].ffn
    if place.spec.head.transform != "bert" or not isinstance(ffn, Dense | Gated):
        return 1  # GELU
    return _FUNCTIONS.get(ffn.activation)


def _embedding(place: Place) -> int | None:
    """A lookup, and the product with a factor. An encoder without a table of its own looks up its tokens here, too."""
    encoder, tables = place.spec.encoder, 1
    if encoder is not None and place.workload.phase != "decode":
        if encoder.embedding_scale is not None:
            return None
        tables += place.op.stack == "decoder" and encoder.vocab_size is None
    return tables * (1 + (place.spec.embedding.scale != 1))


def _positions(place: Place) -> int | None:
    """A lookup, the offset of the positions, and the sum. Sines and cosines need ten functions more than the sum."""
    positions: Positions = place.spec.positions
    match positions:
        case LearnedPositions(uncounted=None):
            return 3
        case SinusoidalPositions(uncounted=None):
            return 12
        case LearnedPositions() | SinusoidalPositions() | Rope() | Alibi() | RelativeBias() | NoPositions():
            return None
        case _:
            assert_never(positions)


def _head(place: Place) -> int:
    head = place.spec.head
    return 1 + (head.scale != 1) + (0 if head.soft_cap is None else 3)


def _norm(place: Place) -> int | None:
    """LayerNorm and RMSNorm are one function. With a unit offset, plain PyTorch computes an RMSNorm in ten steps."""
    spec = place.spec
    norm = (place.layer.norm if place.op.layer else None) or spec.norm
    mixer = place.attention if place.name.startswith("attention.") else None
    if isinstance(mixer, Attention) and mixer.qk_norm is not None:
        own = mixer.qk_norm
        if own.over == "per_head":
            return 3 if own.weight else 1
        norm = replace(spec.norm, kind=own.norm_kind, weight=own.weight, bias=own.bias)
    if norm.unit_offset and norm.weight:
        return 10 if norm.kind == "rmsnorm" and not norm.bias else None
    return 2 if norm.kind == "rmsnorm" and norm.bias else 1


def _scaling(layer: Layer) -> int:
    """Return the number of products of a sum with factors."""
    return (layer.skip_scale != 1) + (layer.residual_scale != 1)


def _sublayers(layer: Layer) -> int:
    """Return the number of sums that the op `residual` stands for. Parallel sublayers are added one after the other."""
    return (layer.mixer is not None) + (layer.ffn is not None) if layer.placement.startswith("parallel") else 1


def sums(place: Place) -> int | None:
    layer = place.layer
    if layer.residual_from_norm or layer.output_scale or len(branches(layer.mixer)) > 1:
        return None
    return _sublayers(layer) * (1 + _scaling(layer))


def rope(place: Place) -> int | None:
    """For queries and for keys: to fp32, four products, a difference, a sum, joining the halves, and back. Joining the
    dimensions that are not rotated is one more."""
    mixer, rope = place.attention, place.positions
    if mixer is None:
        return None
    assert isinstance(rope, Rope)  # no other encoding has this op
    if rope.scaling is not None and rope.scaling.kind == "proportional":
        return None
    width = mixer.qk_rope_head_dim if isinstance(mixer, LatentAttention) else mixer.head_dim
    return 2 * (9 + (rope.rotary_dim is not None and rope.rotary_dim < width))


def _mask(mixer: Attention | LatentAttention, *, cross: bool) -> int:
    """Return the number of functions that build the mask, and put it into the scores."""
    causal, window, chunk = True, mixer.sliding_window, None
    if isinstance(mixer, Attention):
        causal, chunk = mixer.causal and not cross, mixer.attention_chunk_size
    if causal:
        return 5 + (3 if window is not None else 0) + (4 if chunk is not None else 0)
    return 0 if cross or window is None else 7


def before_scores(place: Place) -> int | None:
    """Return the functions around the attention itself: the latent parts of MLA are joined, ALiBi's slopes are
    computed, and queries get their temperature."""
    mixer = place.attention
    if mixer is None:
        return None
    joined = 3 if isinstance(mixer, LatentAttention) else 0 if mixer.temperature is None else 9
    positions: Positions = place.positions
    match positions:
        case RelativeBias() | Alibi(rounded=True):
            return None
        case Alibi():
            joined += 9
        case Rope() | LearnedPositions() | SinusoidalPositions() | NoPositions():
            pass
        case _:
            assert_never(positions)
    return joined + place.cross  # cross-attention numbers the tokens of the encoder


def _core(place: Place) -> int | None:
    """Two products, the scale, the softmax (to fp32 and back), a copy of the output in the order of the tokens.

    Batched products need operands in the order of their heads. RoPE writes queries and keys in this order, and repeated
    key-value heads are copies in this order. All other operands are copied, unless there is only one sequence.

    With a cache, the number depends on the kind of cache, and is not known.
    """
    mixer, extra = place.attention, before_scores(place)
    if mixer is None or extra is None or not place.whole or mixer.num_attention_heads == 1:
        return None
    repeated = mixer.num_attention_heads > mixer.num_key_value_heads
    rotated = place.positions.acts_on == "queries and keys"
    several = place.workload.batch > 1
    copies = (several and not rotated) + (repeated or (several and not rotated)) + (repeated or several)
    if isinstance(mixer, Attention):
        extra += (3 if mixer.logit_soft_cap is not None else 0) + mixer.sinks
    if place.positions.acts_on == "scores":  # ALiBi: before_scores refuses the other kinds
        extra += 2  # distance, product with the slopes, sum. The scores are then in fp32 already
    return copies + 2 + 1 + _mask(mixer, cross=place.cross) + 3 + 1 + extra


def _gate(place: Place) -> int | None:
    """The activation, with conversions to fp32 and back for a softplus, and the product."""
    mixer = place.attention
    if not isinstance(mixer, Attention):
        return None
    return 4 if mixer.gate_activation == "softplus" else 2


def router_product(moe: MoE) -> int:
    """The input, the matrix and the bias are converted to fp32."""
    return 3 + moe.router.bias


def _router(place: Place) -> int | None:
    """The product and the selection: the scores, the best experts, their weights, and the product with the scale."""
    moe = place.moe
    if moe is None:
        return None
    router = moe.router
    match router.scores:
        case "softmax_topk":
            return router_product(moe) + 3
        case "sparsemixer":
            return None
        case _:
            groups = 0 if router.n_group == 1 else (7 if router.correction else 6)
            chosen = 4 + bool(router.correction) + groups + (3 if router.normalize else 0)
            return router_product(moe) + chosen


def _experts_met(place: Place) -> int | None:
    """The expected number of experts that have tokens. Each of them is a product of its own."""
    if place.moe is None:
        return None
    return round(experts_read(place.moe, place.moe.num_experts, place.workload.batch * place.workload.query_len))


def _expert_activations(place: Place) -> int | None:
    met, functions = _experts_met(place), activation(place)
    return None if met is None or functions is None else met * functions


def _dispatch(place: Place) -> int | None:
    """Sort the choices by expert, divide them by k, and gather the tokens. Weights on inputs are gathered, too."""
    return None if place.moe is None else 3 + (3 if place.moe.router.on_input else 0)


def _combine(place: Place) -> int | None:
    """Join the outputs, sort and gather them, multiply them by their weights, and add them."""
    moe = place.moe
    return None if moe is None else (4 if moe.router.on_input else 6) + added(moe)


def added(moe: MoE) -> int:
    """The sums with the outputs of the feed-forwards that every token uses."""
    shared = 0 if moe.shared is None else 1 + moe.shared.averaged
    return shared + (moe.beside is not None) + moe.output_bias


TORCH: dict[str, Rule] = {
    **dict.fromkeys(PRODUCTS, 1),
    **dict.fromkeys(NO_WORK, 0),
    "embedding": _embedding,
    "position_embedding": _positions,
    "position_encoding": _positions,
    "token_type_embedding": 3,
    "attention.clip": 3,
    "attention.gate": _gate,
    "ffn.router": _router,
    "ffn.shared_scale": 2,
    "ffn.output_bias": 0,  # `combine` counts it
    "head.act": _head_activation,
    "head.bias": 1,
    "fixed_bias": 1,
    "lm_head": _head,
}
"""Rules that `eager` and `fused` share."""

_EAGER: dict[str, Rule] = {
    **TORCH,
    **dict.fromkeys(NORMS, _norm),
    **dict.fromkeys(SUMS, sums),
    **dict.fromkeys(named(DENSE, "act"), activation),
    "attention.rope": rope,
    "attention.core": _core,
    "cross_attention.core": _core,
    "ffn.dispatch": _dispatch,
    **dict.fromkeys(named("ffn.experts", "gate_proj up_proj down_proj"), _experts_met),
    "ffn.experts.act": _expert_activations,
    "ffn.combine": _combine,
}

PROFILE = Profile(
    "at least",
    "llmbench's implementation `standard`: plain PyTorch",
    "bf16 on CUDA, without a cache. Each function of torch that is not a view counts as one kernel. A few functions "
    "launch more (sorts, products that are split), so the number is a minimum. RMSNorm is one kernel. The "
    "expected number of experts computes, one after another",
    _EAGER,
)
