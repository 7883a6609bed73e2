"""Facts about the config class of each model type in transformers: defaults, aliases of keys, text parts."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec


@lru_cache(maxsize=1)
def facts() -> dict[str, Any]:
    """Return the records of `defaults.json`: a dict from model type to its record.

    The docstring of tools/huggingface_defaults.py describes the keys of a record.
    """
    file = Path(__file__).with_name("defaults.json")
    records: dict[str, Any] = msgspec.json.decode(file.read_bytes())["types"]
    return records


_ROTATION = re.compile("rope_(theta|scaling|parameters|pct|local_base_freq)|rotary")
"""Matches the config keys that state something about RoPE."""


def states_rotation(values: dict[str, Any]) -> bool:
    """Return whether a config states something about RoPE."""
    return any(_ROTATION.search(key) and value is not None for key, value in values.items())


def defaults_of(model_type: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the values that the class of a model type gives to the keys that a config lacks.

    `values`: the config. If it states nothing about RoPE, `rope_parameters` has the RoPE of the class.
    """
    record = facts().get(model_type)
    if record is None:
        return {}
    defaults = {
        **record.get("defaults", {}),
        **{key: record.get(key) for key in ("default_theta", "replaces_head_dim")},
    }
    if not states_rotation(values):
        defaults["rope_parameters"] = record.get("rope_parameters")
    return defaults
