"""The profile `fused`: how many kernels llmbench's own implementation `fused` launches for each op.

Its Triton kernels compute attention, norms with the sum before them, rotations, activations and experts. PyTorch
computes everything else. A test counts the launches of real models and compares each op.
"""

from __future__ import annotations

from collections.abc import Callable

from llmbench.sizing.launches.eager import TORCH, activation, added, before_scores, rope, router_product, sums
from llmbench.sizing.launches.place import DENSE, NORMS, SUMS, Place, Profile, Rule, named
from llmbench.spec.ffn import MoE
from llmbench.spec.mixer import Attention

FUSED_ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "sigmoid", "swiglu_oai")
"""The activations of kernels/pointwise/glu.py."""
FUSED_SCORES = ("softmax", "softmax_topk", "sigmoid")
"""The scores of kernels/experts/routing.py."""


def _fused_sum(place: Place) -> int | None:
    """The next norm adds the output of a sublayer in its own kernel, if every sum is read by a norm."""
    placements = {layer.placement for layer in place.stack.layers.values()}
    norms_first = placements <= {"pre", "sandwich", "parallel", "parallel_two"} and place.stack.final_norm
    own = sums(place)
    return None if own is None or not (norms_first or placements == {"post"}) else own - 1


def _fused_activation(place: Place) -> int | None:
    if not place.gated:
        return activation(place)
    return 1 if place.activation in FUSED_ACTIVATIONS else None


def _fused_core(place: Place) -> int | None:
    extra, mixer = before_scores(place), place.attention
    chunked = isinstance(mixer, Attention) and mixer.attention_chunk_size is not None  # chunks are packed on the host
    return None if extra is None or chunked or not place.whole else 1 + extra


def _fused_router(place: Place) -> int | None:
    moe = place.moe
    return None if moe is None or moe.router.scores not in FUSED_SCORES else router_product(moe) + 1


def _with_experts(launches: Callable[[MoE], int]) -> Rule:
    """Return the rule of an op of a mixture of experts. Its launches are unknown if the kernels refuse the mixture."""

    def rule(place: Place) -> int | None:
        known = place.moe is not None and place.moe.activation in FUSED_ACTIVATIONS
        return launches(place.moe) if known and place.moe is not None else None

    return rule


_FUSED: dict[str, Rule] = {
    **TORCH,
    **dict.fromkeys(NORMS, 1),
    **dict.fromkeys(SUMS, _fused_sum),
    **dict.fromkeys(named(DENSE, "act"), _fused_activation),
    "attention.rope": lambda place: None if rope(place) is None else 1,
    "attention.core": _fused_core,
    "cross_attention.core": _fused_core,
    "ffn.router": _fused_router,
    # Two kernels sort the choices. Weights on inputs are converted, multiplied and replaced by ones.
    "ffn.dispatch": _with_experts(lambda moe: 2 + (3 if moe.router.on_input else 0)),
    # The first kernel multiplies by gate and up, and applies the activation.
    "ffn.experts.gate_proj": _with_experts(lambda moe: 1),
    "ffn.experts.up_proj": _with_experts(lambda moe: 0 if moe.gated else 1),
    "ffn.experts.act": _with_experts(lambda moe: 0),
    "ffn.experts.down_proj": _with_experts(lambda moe: 1),
    "ffn.combine": _with_experts(lambda moe: 1 + added(moe)),
}

PROFILE = Profile(
    "at least",
    "llmbench's implementation `fused`: its Triton kernels, and PyTorch for products",
    "bf16 on CUDA, without a cache. Each function of torch that is not a view counts as one kernel",
    _FUSED,
)
