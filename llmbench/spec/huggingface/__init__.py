"""A Hugging Face config.json becomes a ModelSpec, or an honest refusal.

Known model types are read by their family's importer (`families`); a key it does not understand makes the result
approximate, and says so. A multimodal config stands for its text part, and a note says so. An unknown model type is
refused: no figure is better than a wrong one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from llmbench.errors import SpecError, UnsupportedError, suggestion
from llmbench.spec.huggingface.composite import text_part
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.facts import facts
from llmbench.spec.model import ModelSpec

__all__ = ["from_config", "load_config", "supported_model_types"]


def load_config(path: Path, *, name: str | None = None) -> ModelSpec:
    """Read config.json (or the folder that holds it). Raises SpecError, UnsupportedError."""
    file = path / "config.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as problem:  # ValueError: not UTF-8, or a name that no file can have
        raise SpecError(f"cannot read {file}: {_reason(problem)}") from None
    try:
        values = json.loads(text)  # the standard parser, because it accepts the NaN and Infinity that configs hold
    except (ValueError, RecursionError) as problem:
        raise SpecError(f"{file} is not JSON: {problem}") from None
    if not isinstance(values, dict):
        raise SpecError(f"{file} does not hold a JSON object")
    stem = path.name if path.is_dir() else path.parent.name if path.name == "config.json" else path.stem
    return from_config(values, name=name or stem or "model", source=str(path))


def from_config(values: dict[str, Any], *, name: str, source: str = "Hugging Face config") -> ModelSpec:
    """A parsed config as a spec. Raises SpecError where a value is wrong, UnsupportedError where it is not known."""
    from llmbench.spec.huggingface.families import FAMILIES

    notes: list[str] = []
    values = text_part(values, notes)
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        raise SpecError("config has no model_type", hint="is it the config.json of a transformers model?")
    known = facts().get(model_type, {})
    defaults = {**known.get("defaults", {}), "default_theta": known.get("default_theta")}
    config = Config(values, model_type=model_type, defaults=defaults, aliases=known.get("attribute_map", {}))
    config.notes += notes
    importer = FAMILIES.get(model_type)
    if importer is None:
        importer = _unknown(config)
    try:
        spec = importer(config)
    except msgspec.ValidationError as problem:
        raise SpecError(f"config: {problem}") from None
    config.doubt_unread()
    named = msgspec.structs.replace(
        spec,
        name=_text(name)[:200],
        source=_text(source),
        approximate=tuple(map(_text, (*spec.approximate, *config.approximate))),
        undescribed=tuple(map(_text, (*spec.undescribed, *config.undescribed))),
        notes=tuple(map(_text, (*spec.notes, *config.notes))),
    )
    return validated(named)


def _text(text: str) -> str:
    """The text without what UTF-8 cannot hold: the halves of characters that JSON and file names may have."""
    return text.encode("utf-8", "replace").decode("utf-8")


def validated(spec: ModelSpec) -> ModelSpec:
    """Hold a spec that was put together in code to the same bounds as one that was read from a file."""
    try:
        return msgspec.convert(msgspec.to_builtins(spec), ModelSpec).check()
    except msgspec.ValidationError as problem:
        raise SpecError(f"config gives an impossible model: {problem}") from None


def supported_model_types() -> list[str]:
    """Every model_type that is read exactly."""
    from llmbench.spec.huggingface.families import FAMILIES

    return sorted(FAMILIES)


def _unknown(c: Config) -> Any:
    from llmbench.spec.huggingface.families import FAMILIES

    near = suggestion(c.model_type, FAMILIES)
    raise UnsupportedError(
        f"model type `{c.model_type[:60]}` is not known",
        hint=(f"the nearest known one is `{near}`; " if near else "") + "`llmbench specs list --model-types` shows all",
    )


def _reason(problem: Exception) -> str:
    return problem.strerror or str(problem) if isinstance(problem, OSError) else str(problem)
