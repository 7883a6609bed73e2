"""Functions that reduce a model to the single layer that a piece needs, and functions that return parts of that
layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.spec.catalog import bundled_models, load_bundled
from llmbench.spec.mixer import AttentionKind, Parallel
from llmbench.spec.model import Layer, ModelSpec

__all__ = [
    "attention_of",
    "ffn_of",
    "layer_of",
    "layer_of_each_kind",
    "short_vocabulary",
    "with_attention",
    "with_layer",
]

T = TypeVar("T")


def with_layer(spec: ModelSpec, what: str, fits: Callable[[Layer], bool]) -> ModelSpec:
    """Return the model reduced to its first layer for which `fits` returns true. Raises LLMBenchError if there is no
    such layer. `what`: the name of the missing part in the error message."""
    name = next((name for name in spec.order if fits(spec.layers[name])), None)
    if name is None:
        others = [other.name for other in map(load_bundled, bundled_models()) if any(map(fits, other.layers.values()))]
        named = f", for example {', '.join(others[:5])}" if others else ""
        raise LLMBenchError(f"{spec.name} has no {what}", hint=f"choose another model with --model{named}")
    return msgspec.structs.replace(
        spec, layers={name: spec.layers[name]}, pattern=name, encoder=None, published_parameters=None
    )


def with_attention(
    spec: ModelSpec, what: str = "attention", fits: Callable[[AttentionKind], bool] = lambda mixer: True
) -> ModelSpec:
    """Return the model reduced to its first layer whose only mixer is an attention for which `fits` returns true.

    Raises LLMBenchError if there is no such layer. `what`: the name of this attention in the error message.
    """
    parallel = any(isinstance(layer.mixer, Parallel) for layer in spec.layers.values())
    missing = f"{what} that is the only mixer of its layer" if parallel else what
    return with_layer(spec, missing, lambda layer: isinstance(layer.mixer, AttentionKind) and fits(layer.mixer))


def short_vocabulary(spec: ModelSpec) -> ModelSpec:
    """Return the model with a vocabulary of at most 256 tokens. Pieces without embedding and output head use it,
    because they do not need a larger vocabulary."""
    return msgspec.structs.replace(spec, vocab_size=min(spec.vocab_size, 256))


def layer_of_each_kind(spec: ModelSpec) -> ModelSpec:
    """Return the model reduced to the first layer of each kind, or to two layers if all layers are of one kind.

    The reduced model runs all parts of the whole model, including the transition from one layer to the next.
    """
    kinds = list(dict.fromkeys(spec.order))
    names = kinds if len(kinds) > 1 else spec.order[:2]
    return msgspec.structs.replace(spec, pattern=" ".join(names), published_parameters=None)


def layer_of(spec: ModelSpec) -> Layer:
    """Return the first layer of the model."""
    return spec.layers[spec.order[0]]


def attention_of(spec: ModelSpec) -> AttentionKind:
    """Return the mixer of the first layer, which must be an attention."""
    mixer = layer_of(spec).mixer
    assert isinstance(mixer, AttentionKind)
    return mixer


def ffn_of(spec: ModelSpec, kind: type[T]) -> T:
    """Return the feed-forward of the first layer, which must be of type `kind`."""
    ffn = layer_of(spec).ffn
    assert isinstance(ffn, kind)
    return ffn
