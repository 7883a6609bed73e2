"""Facts about the config class of each model type in transformers: defaults, aliases of keys, text parts."""

from __future__ import annotations

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
