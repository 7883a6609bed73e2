"""Converts a Hugging Face config.json to a ModelSpec.

Each `model_type` has an importer in `families`. If a config has a key that its importer does not understand, the spec
is marked approximate, with the reason. llmbench reads only the text part of a multimodal config, and adds a note. An
unknown `model_type` raises UnsupportedError, because a missing figure is better than a wrong figure.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec

from llmbench.errors import SpecError, UnsupportedError, suggestion
from llmbench.printable import printable
from llmbench.spec.huggingface.composite import TEXT_KEYS, other_modalities, parts_with_text, text_part
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.facts import defaults_of, facts
from llmbench.spec.huggingface.quantization import stored_weights
from llmbench.spec.model import ModelSpec, Tower
from llmbench.spec.reading import read_text
from llmbench.spec.weights.tensors import has_weights

__all__ = ["from_config", "load_config", "supported_model_types"]


def load_config(path: Path, *, name: str | None = None) -> ModelSpec:
    """Return the spec of the config.json at `path`, or in the folder `path`.

    `name`: the name of the spec. The default is the name of the folder. If the file has another name than config.json,
    the default is the name of the file. Raises SpecError if the file cannot be read or is invalid, and UnsupportedError
    if no importer knows the model type.
    """
    file = path / "config.json" if os.path.isdir(path) else path
    values = _read_object(file)
    beside = file.parent / "hf_quant_config.json"
    quantization = _read_object(beside) if file.name == "config.json" and os.path.lexists(beside) else None
    stem = path.name if os.path.isdir(path) else path.parent.name if path.name == "config.json" else path.stem
    spec = from_config(values, name=name or stem or "model", source=str(path), quantization=quantization)
    if file.name != "config.json" or not has_weights(file.parent):
        return spec
    weights = msgspec.structs.replace(spec.weights, tensors_in=str(file.parent))
    return msgspec.structs.replace(spec, weights=weights)


def _read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises SpecError if the file cannot be read or has something else."""
    text = read_text(file)
    try:
        values = json.loads(text)  # msgspec does not accept the NaN and Infinity of some configs
    except (ValueError, RecursionError) as problem:
        raise SpecError(f"{file} is not valid JSON: {problem}") from None
    if not isinstance(values, dict):
        raise SpecError(f"{file} must contain a JSON object, not {type(values).__name__}")
    _refuse_unusual_size(values, file)
    return values


MOST_DEPTH, MOST_KEYS, LONGEST_KEY = 50, 100_000, 500
"""The most levels of objects and lists in a config, the most keys of an object, and the most characters of a key. The
largest objects of real configs name 21,843 classes of images."""


def _refuse_unusual_size(values: dict[str, Any], file: Path) -> None:
    """Raise SpecError if a config has more levels, keys or letters than the readers of its keys can have in time."""
    level: list[Any] = [values]
    for _ in range(MOST_DEPTH):
        inner: list[Any] = []
        for node in level:
            if isinstance(node, dict):
                if len(node) > MOST_KEYS:
                    raise SpecError(f"{file}: an object has {len(node):,} keys, more than {MOST_KEYS:,}")
                if (longest := max(map(len, node), default=0)) > LONGEST_KEY:
                    raise SpecError(f"{file}: a key has {longest:,} characters, more than {LONGEST_KEY}")
            values_of = node.values() if isinstance(node, dict) else node
            inner += [value for value in values_of if value and isinstance(value, (dict, list))]
        if not inner:
            return
        level = inner
    raise SpecError(f"{file} has more than {MOST_DEPTH} levels of objects and lists")


def from_config(
    values: dict[str, Any],
    *,
    name: str,
    source: str = "Hugging Face config",
    quantization: dict[str, Any] | None = None,
) -> ModelSpec:
    """Return the spec of a parsed config. `quantization`: the content of hf_quant_config.json, if it exists.

    Raises SpecError for an invalid value, and UnsupportedError for a model type that llmbench does not know.
    """
    from llmbench.spec.huggingface.families import FAMILIES

    _refuse(values.get("model_type"))
    notes: list[str] = []
    left_out = other_modalities(values)
    whole, values = values, text_part(values, notes)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise SpecError("config has no model_type", hint="give the config.json of a transformers model")
    known = facts().get(model_type, {})
    defaults, aliases = defaults_of(model_type, values), known.get("attribute_map", {})
    config = Config(values, model_type=model_type, defaults=defaults, aliases=aliases)
    importer = FAMILIES.get(model_type)
    if importer is None:
        importer = _unknown(config)
    try:
        spec = importer(config)
    except msgspec.ValidationError as problem:
        raise SpecError(f"config: {problem}") from None
    config.doubt_unread()
    towers = _towers(whole, spec)
    if left_out and not notes:
        notes = [f"multimodal config `{model_type}`: all figures but the bytes of weights are those of its text part"]
    config.notes[:0] = notes
    named = msgspec.structs.replace(
        spec,
        name=printable(name)[:200],
        source=printable(source),
        approximate=tuple(map(printable, (*spec.approximate, *config.approximate))),
        undescribed=tuple(map(printable, (*spec.undescribed, *config.undescribed))),
        notes=tuple(map(printable, (*spec.notes, *config.notes))),
        weights=stored_weights(parts_with_text(whole), model_type, quantization),
        towers=towers,
    )
    return validated(named)


def _refuse(model_type: object) -> None:
    """Raise UnsupportedError for a model that is no language model."""
    from llmbench.spec.huggingface.refused import REFUSED

    if isinstance(model_type, str) and model_type in REFUSED:
        raise UnsupportedError(
            f"model type `{model_type}` is not supported: {REFUSED[model_type]}",
            hint="llmbench sizes models that read or write text, also with towers for images and sound",
        )


def _towers(values: dict[str, Any], spec: ModelSpec) -> tuple[Tower, ...]:
    """Return the parts for other modalities than text. values: the whole config. spec: the spec of its text part."""
    known = facts().get(str(values.get("model_type")), {})
    has_parts = known.keys() & {"text_config", "sub_configs"} or values.keys() & set(TEXT_KEYS)
    if not (has_parts or other_modalities(values)):
        return ()
    from llmbench.spec.huggingface.towers import towers_of  # only multimodal configs need the formulas

    return tuple(
        msgspec.structs.replace(tower, doubts=tuple(map(printable, tower.doubts))) for tower in towers_of(values, spec)
    )


def validated(spec: ModelSpec) -> ModelSpec:
    """Apply the checks of a spec file to the spec, and return the spec. Raises SpecError if a check fails."""
    try:
        return msgspec.convert(msgspec.to_builtins(spec), ModelSpec).check()
    except msgspec.ValidationError as problem:
        raise SpecError(f"config gives an impossible model: {problem}") from None


def supported_model_types() -> list[str]:
    """Return all model types that have an importer, sorted by name."""
    from llmbench.spec.huggingface.families import FAMILIES

    return sorted(FAMILIES)


def _unknown(c: Config) -> Any:
    from llmbench.spec.huggingface.families import FAMILIES

    near = suggestion(c.model_type, FAMILIES)
    raise UnsupportedError(
        f"model type `{c.model_type[:60]}` is unknown",
        hint=(f"did you mean `{near}`? " if near else "") + "`llmbench specs list --model-types` shows all model types",
    )
