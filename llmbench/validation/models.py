"""The bundled model that a text in a file of measurements names."""

from __future__ import annotations

import re

from llmbench.errors import UnknownNameError
from llmbench.spec.catalog import find_model
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


def bundled_model(text: str) -> ModelSpec:
    """Return the bundled model that a text names, such as `llama3.1-8b` or `meta-llama/Llama-3.1-8B-Instruct-FP8`.

    Raises RefusedError if no bundled model has this name. The text is never a path or an address.
    """
    name = text.strip()
    if not name:
        raise RefusedError("the row names no model")
    tried = [name, name.rpartition("/")[2]]
    while _SUFFIX.search(tried[-1]):
        tried.append(_SUFFIX.sub("", tried[-1]))
    for candidate in tried:
        if re.fullmatch(r"[\w.+ -]+", candidate) and not candidate.endswith((".toml", ".json")):
            try:
                return find_model(candidate)
            except UnknownNameError:
                continue
    raise RefusedError(f"no bundled model is called `{name[:80]}`; `llmbench specs list` shows all models")
