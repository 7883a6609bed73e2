"""The smallest model that has what a piece needs: one layer of the kind that has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from llmbench.errors import LLMBenchError
from llmbench.spec.mixer import AttentionKind
from llmbench.spec.model import Layer, ModelSpec

__all__ = ["attention_of", "ffn_of", "layer_of", "layer_of_each_kind", "mixer_of", "with_layer"]

T = TypeVar("T")


def with_layer(spec: ModelSpec, what: str, fits: Callable[[Layer], bool]) -> ModelSpec:
    """The model with the first of its layers that fits, alone. Raises LLMBenchError naming what it does not have."""
    name = next((name for name in spec.order if fits(spec.layers[name])), None)
    if name is None:
        raise LLMBenchError(f"{spec.name} has no {what}", hint="--model names another; `llmbench specs list` has them")
    return msgspec.structs.replace(
        spec, layers={name: spec.layers[name]}, pattern=name, encoder=None, published_parameters=None
    )


def layer_of_each_kind(spec: ModelSpec) -> ModelSpec:
    """The model with the first layer of each kind it has, and of a single kind with two of them: what a whole model
    does is done in these, one handing on to the next."""
    kinds = list(dict.fromkeys(spec.order))
    names = kinds if len(kinds) > 1 else spec.order[:2]
    return msgspec.structs.replace(spec, pattern=" ".join(names), published_parameters=None)


def layer_of(spec: ModelSpec) -> Layer:
    """Its first layer."""
    return spec.layers[spec.order[0]]


def mixer_of(spec: ModelSpec, kind: type[T]) -> T:
    """The mixer of its first layer, which is of that kind."""
    mixer = layer_of(spec).mixer
    assert isinstance(mixer, kind)
    return mixer


def attention_of(spec: ModelSpec) -> AttentionKind:
    """The mixer of its first layer, which attends."""
    mixer = layer_of(spec).mixer
    assert isinstance(mixer, AttentionKind)
    return mixer


def ffn_of(spec: ModelSpec, kind: type[T]) -> T:
    """The feed-forward of its first layer, which is of that kind."""
    ffn = layer_of(spec).ffn
    assert isinstance(ffn, kind)
    return ffn
