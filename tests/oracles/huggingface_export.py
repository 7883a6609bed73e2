"""Writes a ModelSpec as a Hugging Face config.json, where transformers has a class for it.

`huggingface_forms` has the keys of each family. The importer reads every config back. A spec that the config of its
family cannot express is refused with the name of the field.
"""

from __future__ import annotations

from typing import Any

import msgspec

from llmbench.errors import LLMBenchError, UnsupportedError
from llmbench.spec.huggingface import from_config
from llmbench.spec.huggingface.facts import facts as all_facts
from llmbench.spec.model import Layer, ModelSpec
from llmbench.spec.weights.stored import Weights

from .huggingface_forms import FORMS
from .huggingface_keys import View

__all__ = ["exportable_model_types", "same_model", "to_config"]

# Model types of remote code on the hub, and the type whose keys they share.
_KEYS_OF = {"kimi_k2": "deepseek_v3", "deepseek": "llama"}


def exportable_model_types() -> list[str]:
    """Every `family` that `to_config` can write, sorted."""
    return sorted(FORMS)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config.json of a spec as a dict; `from_config` reads it back as the same model.

    Raises UnsupportedError where no Hugging Face class describes the model.
    """
    parts = FORMS.get(spec.family)
    if parts is None:
        family_text = f"its family is `{spec.family}`" if spec.family else "it belongs to no family"
        raise UnsupportedError(
            f"{spec.name} has no Hugging Face form: {family_text}",
            hint="families that can be written: " + ", ".join(exportable_model_types()),
        )
    facts = all_facts().get(_KEYS_OF.get(spec.family, spec.family), {})
    view = View(spec, facts.get("defaults", {}), facts.get("undeclared", {}))
    values: dict[str, Any] = {}
    try:
        for part in parts:
            values |= part(view)
    except (AttributeError, IndexError, ZeroDivisionError, AssertionError):
        # the layers lack a part of this family, or have another kind of it
        raise _no_form(spec, "its layers are of another kind") from None
    own_names = facts.get("attribute_map", {})
    config = {"model_type": spec.family} | {own_names.get(key, key): value for key, value in values.items()}
    try:
        again = from_config(config, name=spec.name)
    except LLMBenchError as problem:
        raise _no_form(spec, str(problem)) from None
    exact = msgspec.structs.replace(again, approximate=spec.approximate)
    lost = _difference(same_model(spec), same_model(exact))
    if lost is not None:
        raise _no_form(spec, f"its config has no key for {lost}")
    if again.approximate != spec.approximate:
        raise _no_form(spec, again.approximate[0] if again.approximate else "it is approximate")
    return config


def same_model(spec: ModelSpec) -> ModelSpec:
    """The spec without names, sources, notes and weight format, and with standard names of its kinds of layers.

    Two specs of one model are equal after this.
    """
    layers, pattern = _renamed(spec.layers, spec.order)
    encoder = spec.encoder
    if encoder is not None:
        inner, inner_pattern = _renamed(encoder.layers, encoder.order)
        encoder = msgspec.structs.replace(encoder, layers=inner, pattern=inner_pattern)
    mtp = spec.next_token_prediction
    if mtp is not None:
        kind = next(name for name, layer in layers.items() if layer == spec.layers[mtp.layer])
        mtp = msgspec.structs.replace(mtp, layer=kind)
    return msgspec.structs.replace(
        spec,
        name="model",
        source="",
        aliases=(),
        undescribed=(),
        notes=(),
        published_parameters=None,
        weights=Weights(),
        towers=(),
        layers=layers,
        pattern=pattern,
        encoder=encoder,
        next_token_prediction=mtp,
    )


def _renamed(layers: dict[str, Layer], order: tuple[str, ...]) -> tuple[dict[str, Layer], str]:
    kinds: list[Layer] = []
    for name in order:
        if layers[name] not in kinds:
            kinds.append(layers[name])
    names = [f"kind{kinds.index(layers[name])}" for name in order]
    return {f"kind{index}": layer for index, layer in enumerate(kinds)}, " ".join(names)


def _no_form(spec: ModelSpec, why: str) -> UnsupportedError:
    return UnsupportedError(f"{spec.name} has no form as a Hugging Face `{spec.family}`: {why}")


def _difference(left: Any, right: Any, path: str = "") -> str | None:
    """The path of the first field that differs, or None."""
    if isinstance(left, msgspec.Struct) and type(left) is type(right):
        pairs = [(name, getattr(left, name), getattr(right, name)) for name in left.__struct_fields__]
    elif isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        pairs = [(name, left[name], right[name]) for name in left]
    else:
        return None if left == right else path or "model"
    for name, one, other in pairs:
        path_of_difference = _difference(one, other, f"{path}.{name}".removeprefix("."))
        if path_of_difference is not None:
            return path_of_difference
    return None
