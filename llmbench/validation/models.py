"""The bundled model that a text in a file of measurements names."""

from __future__ import annotations

import re
from functools import lru_cache

from llmbench.spec.catalog import bundled_name, load_bundled
from llmbench.spec.model import ModelSpec
from llmbench.validation.rows import RefusedError

_TUNED = "instruct|chat|base|it|hf|thinking|reasoning|preview"
_STORED = (
    "gguf|mlx|awq|gptq|bnb|quantized|dynamic|fp8|fp4|bf16|fp16|nvfp4|mxfp4|mxfp8|int4|int8|w4a16|w8a8|w8a16|"
    r"g\d+|\d ?bits?"
)
_DATED = r"2[3-7](?:0[1-9]|1[0-2])|0[1-9]\d\d|1[0-2]\d\d"
_SUFFIX = re.compile(f"[-_ .](?:{_TUNED}|{_STORED}|{_DATED})$", re.IGNORECASE)
"""A word at the end of a repository's name: how the model was tuned, how it is stored, or when. It changes no width."""

LONGEST = 200
"""The largest length of the name of a model. The hub allows fewer than 100 characters."""


def bundled_model(text: str) -> ModelSpec:
    """Return the bundled model that a text names, such as `llama3.1-8b` or `meta-llama/Llama-3.1-8B-Instruct-FP8`.

    Raises RefusedError if no bundled model has this name. The text is never a path or an address.
    """
    name = text.strip()
    if not name:
        raise RefusedError("the row names no model")
    if len(name) > LONGEST:
        raise RefusedError(f"the name of the model has {len(name):,} characters: {name[:80]}")
    tried = [name, name.rpartition("/")[2]]
    while _SUFFIX.search(tried[-1]):
        tried.append(_SUFFIX.sub("", tried[-1]))
    known = next(filter(None, map(bundled_name, tried)), None)
    if known is not None:
        return _load(known)
    raise RefusedError(f"no bundled model is called `{name[:80]}`; `llmbench specs list` shows all models")


_load = lru_cache(maxsize=32)(load_bundled)
"""Most rows of a file are about few models."""
