"""The bundled model that a text in a file of measurements names."""

from __future__ import annotations

import re

from llmbench.errors import UnknownNameError
from llmbench.spec.catalog import find_model
from llmbench.spec.model import ModelSpec
from llmbench.validation.rows import RefusedError

_SUFFIX = re.compile(r"[-_ ](?:instruct|chat|base|it|hf|fp8|dynamic|awq|gptq|bnb|gguf|int4|int8|nvfp4|\d+bits?)$", re.I)
"""A word at the end of a repository's name that says how the model was tuned or stored. It changes no width."""


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
