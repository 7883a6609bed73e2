"""How the layers of a mixture of experts are arranged: which have experts, and what stands beside those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmbench.spec.ffn import FFN, Gated, MoE, SharedExperts
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.parts import block, layer_types
from llmbench.spec.mixer import Mixer
from llmbench.spec.model import ExtraWeight, Layer, Placement


def num_layers(c: Config) -> int:
    """Layers of the decoder; one more than can be where there are too many, which `decoder` then refuses."""
    return min(c.size("num_hidden_layers"), 10_001)


def no_effect(c: Config, keys: str) -> None:
    """Say that these keys, separated by spaces, were considered and change no figure of the family."""
    c.ignore(*keys.split())


def sparse_layers(c: Config, derived: Callable[[int], bool]) -> list[bool]:
    """Whether each layer has experts: by `mlp_layer_types`, or as the class derives it."""
    count = num_layers(c)
    kinds = c.entries("mlp_layer_types", count)
    if kinds is None:
        return [derived(index) for index in range(count)]
    for kind in kinds:
        if kind not in ("dense", "sparse"):
            raise c.error("mlp_layer_types", f"has the unknown kind `{str(kind)[:40]}`")
    return [kind == "sparse" for kind in kinds]


def after_first(c: Config, default: int = 0) -> list[bool]:
    """DeepSeek's rule: experts after `first_k_dense_replace` layers, in every `moe_layer_freq`-th."""
    first = c.count("first_k_dense_replace", default)
    frequency = c.get("moe_layer_freq")
    if isinstance(frequency, list):
        chosen = c.entries("moe_layer_freq", num_layers(c)) or []
        return sparse_layers(c, lambda index: index >= first and bool(chosen[index]))
    every = c.size("moe_layer_freq", 1)
    return sparse_layers(c, lambda index: index >= first and index % every == 0)


def local_layers(c: Config, derived: Callable[[int], bool], *kinds: str) -> list[bool]:
    """Whether each layer has a window: by `layer_types`, or as the class derives it. `kinds` are the names of
    layers with and without a window."""
    local, full = kinds or ("sliding_attention", "full_attention")
    names = layer_types(c, [local if derived(index) else full for index in range(num_layers(c))])
    for name in names:
        if name not in (local, full):
            raise c.error("layer_types", f"has the unknown kind `{name[:40]}`")
    return [name == local for name in names]


def shared_experts(
    c: Config, count: str, width: int, *, bias: bool = False, gate: bool = False
) -> SharedExperts | None:
    """`count` names the key that says how many experts of `width` every token visits."""
    experts = c.count(count)
    return SharedExperts(intermediate_size=experts * width, bias=bias, gate=gate) if experts else None


def arrange(
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
    """One layer each: `mixers` is one for all or one (name, mixer) a layer, `sparse` says which have experts.

    Where there is no `dense` feed-forward, every layer has experts. `extra` weights are in every layer,
    `sparse_extra` beside the experts.
    """
    layers = []
    flags = list(sparse)
    each = list(mixers) if isinstance(mixers, Sequence) else [("", mixers)] * len(flags)
    for (name, mixer), has_experts in zip(each, flags, strict=True):
        ffn: FFN = experts if has_experts or dense is None else dense
        kind = "moe" if isinstance(ffn, MoE) else "dense"
        weights = extra + (sparse_extra if isinstance(ffn, MoE) else ())
        layers.append((f"{name}_{kind}" if name else kind, block(mixer, ffn, placement, extra=weights, **fields)))
    return layers


def matrix(name: str, component: Any, outputs: int, inputs: int) -> ExtraWeight:
    """A matrix that no field of the spec describes."""
    return ExtraWeight(name=name, shape=(outputs, inputs), role="matmul", component=component)


def vector(name: str, component: Any, *shape: int) -> ExtraWeight:
    """A vector (or what is used like one) that no field of the spec describes."""
    return ExtraWeight(name=name, shape=shape, role="vector", component=component)
