"""The real PyTorch model of a ModelSpec, the one that is traced, measured and checked against transformers.

`build(spec)` gives one with random weights, `load(folder)` one that transformers saved. Names are imported when they
are asked for, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmbench.model.create import build, load
    from llmbench.model.decoder import Decoder
    from llmbench.model.state import Cache

__all__ = ["Cache", "Decoder", "build", "load"]

_WHERE = {
    "Cache": "llmbench.model.state",
    "Decoder": "llmbench.model.decoder",
    "build": "llmbench.model.create",
    "load": "llmbench.model.create",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
