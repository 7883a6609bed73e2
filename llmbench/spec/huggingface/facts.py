"""What transformers' configuration classes say of each model type: defaults, other names of keys, text
parts."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec


@lru_cache(maxsize=1)
def facts() -> dict[str, Any]:
    """Model type -> its record in `defaults.json`."""
    file = Path(__file__).with_name("defaults.json")
    records: dict[str, Any] = msgspec.json.decode(file.read_bytes())["types"]
    return records
