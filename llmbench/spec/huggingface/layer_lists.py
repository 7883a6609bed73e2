"""What a config states about each layer: the number of layers, and lists with one entry per layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmbench.spec.huggingface.config import Config

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
    stated = c.entries("layer_types", checked_layers(c))
    return list(default) if stated is None else [str(kind) for kind in stated]


def checked_layers(c: Config) -> int:
    """Return the number of layers of the decoder. Raises SpecError for more than 10,000 layers."""
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
