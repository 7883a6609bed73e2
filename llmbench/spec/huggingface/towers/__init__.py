"""Counts the parameters of the parts of a multimodal model for other modalities: towers and projectors.

Each file has one lineage. `@tower("clip_vision_model")` registers the formula of a tower, by the model type of its
config. `@composite("llava")` registers the parts of a model, by the model type of the whole config. The names of the
parts are those of the modules in transformers, which the files have too. Sizes that a config leaves out come from
`defaults.json`, which tools/huggingface_defaults.py writes.

A part that no formula describes stays in the spec without a number. The bytes of the weights are then approximate.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from llmbench.errors import SpecError
from llmbench.spec.ffn import Dense, Gated
from llmbench.spec.huggingface.composite import TEXT_KEYS, other_modalities
from llmbench.spec.huggingface.config import Config
from llmbench.spec.huggingface.facts import facts
from llmbench.spec.model import ModelSpec, Tower

__all__ = ["COMPOSITES", "TOWERS", "Whole", "composite", "tower", "towers_of"]

TOWERS: dict[str, Callable[[Config], int]] = {}
"""Maps the model type of a tower's config to the function that counts its parameters."""

COMPOSITES: dict[str, Callable[[Whole], dict[str, int | None]]] = {}
"""Maps the model type of a multimodal config to the function that names its parts. None: a part of unknown size."""

_NO_PARTS = (*TEXT_KEYS, "compression_config", "generation_config", "quantization_config")
"""Keys of objects that are no parts for other modalities."""

_SAME_SIZE = """
    activation activation_function architectures attention_heads attention_type conv_chunksize crop_size
    drop_path_rate encoder_attention_heads feature_layer global_head_dim head_dim hidden_act image_mean image_std
    initializer_factor interpolation_mode is_causal layer_scale_init_value max_image_size max_window_size n_window
    n_window_infer num_attention_heads num_classes num_heads output_attentions pooling_kernel_size projection_dim
    projector_dropout rope_parameters rope_theta scale_embedding size tokens_per_second video_seq_length vocab_size
    window_size
"""
"""Keys of towers that change the size of no weight, whatever their value is."""


def tower(*model_types: str) -> Callable[[Callable[[Config], int]], Callable[[Config], int]]:
    """Return a decorator that registers the formula of towers with these model types."""

    def register(formula: Callable[[Config], int]) -> Callable[[Config], int]:
        TOWERS.update(dict.fromkeys(model_types, formula))
        return formula

    return register


def composite(*model_types: str) -> Callable[..., Callable[[Whole], dict[str, int | None]]]:
    """Return a decorator that registers the function for the parts of models with these model types."""

    def register(parts: Callable[[Whole], dict[str, int | None]]) -> Callable[[Whole], dict[str, int | None]]:
        COMPOSITES.update(dict.fromkeys(model_types, parts))
        return parts

    return register


@lru_cache(maxsize=1)
def defaults() -> dict[str, Any]:
    """Return the content of `defaults.json`. The docstring of tools/huggingface_defaults.py describes it."""
    content: dict[str, Any] = msgspec.json.decode(Path(__file__).with_name("defaults.json").read_bytes())
    return content


class Whole:
    """A multimodal config, and the spec of its text part.

    - config: the keys of the multimodal config itself.
    - spec: the spec of its text part.
    - doubts: why the number of parameters may be inexact.
    """

    def __init__(self, values: dict[str, Any], spec: ModelSpec) -> None:
        self.spec = spec
        self.kind = str(values.get("model_type"))
        self._values = values
        self._record = defaults()["composites"].get(self.kind, {})
        self.config = _config(values, self.kind, self._record)
        self.doubts: list[str] = []
        self._parts: dict[str, Config | None] = {}

    @property
    def text_width(self) -> int:
        """The width of the text part."""
        return self.spec.hidden_size

    @property
    def text_intermediate(self) -> int:
        """The width of the first dense feed-forward of the text part. Raises SpecError if it has none."""
        for layer in self.spec.layers.values():
            if isinstance(layer.ffn, (Dense, Gated)):
                return layer.ffn.intermediate_size
        raise SpecError("the text part has no dense feed-forward")

    def unread(self, keys: Iterable[str]) -> list[str]:
        """Return the keys that state an object that neither the class nor the formulas of the parts know."""
        known = self._record.get("parts", {}).keys() | self._parts.keys() | self.config.read
        stated = [key for key in keys if self._values.get(key) and isinstance(self._values[key], dict)]
        return [key for key in stated if key not in known and re.fullmatch(r"\w{1,60}", key)]

    def part(self, key: str) -> Config | None:
        """Return the config of the part under `key`. None: the model has no such part."""
        if key not in self._parts:
            self._parts[key] = self._read(key)
        return self._parts[key]

    def _read(self, key: str) -> Config | None:
        record = self._record.get("parts", {}).get(key, {"any_type": True})
        values = self._values.get(key)
        if values is None and record.get("optional"):
            return None
        if values is None:
            self.doubts.append(f"the config has no {key}, so the default sizes of the class are used")
        values = self.config.table(key) or record.get("when_missing", {})
        stated = values.get("model_type")
        kind = str(stated) if record.get("any_type") and stated is not None else record.get("model_type", "")
        return _config(values, kind, defaults()["towers"].get(kind, {}), path=f"{key}.")

    def size(self, part: str, key: str) -> int:
        """Return a size that the config of a part states. Raises SpecError if there is no such part or size."""
        config = self.part(part)
        if config is None:
            raise SpecError(f"config {part} is missing")
        return config.size(key)

    def tower(self, key: str) -> int | None:
        """Return the number of parameters of the tower under `key`. None: no formula describes it."""
        config = self.part(key)
        if config is None or config.model_type not in TOWERS:
            return None
        counted = TOWERS[config.model_type](config)
        config.ignore(_SAME_SIZE)
        config.doubt_unread(of_tower=True)
        self.doubts += config.approximate
        return counted


def _config(values: dict[str, Any], kind: str, record: dict[str, Any], path: str = "") -> Config:
    return Config(
        values,
        model_type=kind,
        defaults=record.get("defaults", {}),
        aliases=record.get("attribute_map", {}),
        path=path,
    )


def towers_of(values: dict[str, Any], spec: ModelSpec) -> tuple[Tower, ...]:
    """Return the parts for other modalities of a multimodal config. spec: the spec of its text part."""
    return tuple(part for depth, whole in enumerate(_levels(values)) for part in _parts(whole, spec, inside=depth > 0))


def _levels(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a config, its text part, the text part of its text part, and so on."""
    for _ in range(5):
        yield values
        usual = facts().get(str(values.get("model_type")), {}).get("text_config", {})
        inner = next((values[key] for key in TEXT_KEYS if isinstance(values.get(key), dict)), None)
        if inner is None and usual.get("key") not in TEXT_KEYS:
            return
        values = {"model_type": usual.get("model_type"), **(inner or {})}


def _parts(values: dict[str, Any], spec: ModelSpec, *, inside: bool) -> Iterator[Tower]:
    """Yield the parts of a config. inside: whether it is itself a part, whose plain keys say nothing about parts."""
    kind = str(values.get("model_type"))
    left_out = [key for key in other_modalities(values) if isinstance(values.get(key), dict) or not inside]
    if kind not in COMPOSITES:
        record = facts().get(kind, {})
        left_out += record.get("sub_configs", {}) if "text_config" in record else []
        yield from map(_unknown, _named(values, left_out))
        return
    try:
        whole = Whole(values, spec)
        parts = COMPOSITES[kind](whole)
    except SpecError as problem:
        for name in _named(values, left_out) or ["other_modalities"]:
            yield _unknown(name, str(problem))
        return
    doubts = tuple(whole.doubts)
    for name, parameters in parts.items():
        if parameters is None:
            yield _unknown(name)
        elif parameters:
            yield Tower(name=name, parameters=parameters, doubts=doubts)
            doubts = ()
    yield from map(_unknown, whole.unread(left_out))


def _named(values: dict[str, Any], keys: list[str]) -> list[str]:
    """Return the keys that hold a part. If no key does, the keys say only that there is one."""
    plain = [key for key in keys if re.fullmatch(r"\w{1,60}", key)]
    if any(isinstance(values.get(key), dict) for key in TEXT_KEYS):
        plain += [key for key in values if re.fullmatch(r"\w{1,60}_config", key) and key not in (*plain, *_NO_PARTS)]
    objects = [key for key in plain if isinstance(values.get(key), dict)]
    return objects[:8] or (["other_modalities"] if plain else [])


def _unknown(name: str, reason: str = "llmbench has no formula for it") -> Tower:
    return Tower(name=name, doubts=(f"its weights are not counted: {reason}",))


for _file in sorted(Path(__file__).parent.glob("[a-z]*.py")):  # importing a file registers its formulas
    importlib.import_module(f"{__name__}.{_file.stem}")
