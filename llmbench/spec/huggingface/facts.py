"""Facts of transformers' configuration classes by model type: defaults, aliases of keys, text parts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec


@lru_cache(maxsize=1)
def facts() -> dict[str, Any]:
    """The record of each model type in `defaults.json`; tools/huggingface_defaults.py describes its keys."""
    file = Path(__file__).with_name("defaults.json")
    records: dict[str, Any] = msgspec.json.decode(file.read_bytes())["types"]
    return records
