"""The table of each family: it maps the tensors in a family's files to the parameters of the model.

`table("llama", ...)` registers one table for these model types. A family gets a table only after a test showed that its
logits equal those of transformers, with weights that transformers wrote. Each file here has the same name as the
importer of the same configs in `llmbench.spec.huggingface.families`. `common.py` has names that several families share.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import NamedTuple

from llmbench.model.weights.rules import Rule, rules

_NEVER_WEIGHTS = r".*\.rotary_emb\.inv_freq"
"""Buffers in older checkpoints. The config determines them, so they are ignored."""


class Table(NamedTuple):
    """The rules of a family.

    `ignored` matches tensors in the files that the config determines or that do not change logits. `partial_rotation`:
    the class in transformers can rotate a part of each head. Other classes rotate whole heads even if the config asks
    for a part, unless the rotation is scaled.
    """

    rules: tuple[Rule, ...]
    ignored: re.Pattern[str]
    partial_rotation: bool

    def ignores(self, name: str) -> bool:
        """Whether a tensor in a file is ignored."""
        return self.ignored.fullmatch(name) is not None


TABLES: dict[str, Table] = {}
"""The table of each model type."""


def table(
    *families: str,
    top: str,
    layers: str,
    at: str = "model.layers.{i}.",
    ignored: str = "",
    partial_rotation: bool = False,
) -> None:
    """Register the table of some model types. `top`: rules outside the layers. `layers`: rules of a layer. `at`: the
    prefix of a layer's names in the files."""
    found = rules(top) + rules(layers, ours="layers.{i}.", theirs=at)
    pattern = re.compile(f"{_NEVER_WEIGHTS}|{ignored}" if ignored else _NEVER_WEIGHTS)
    for name in families:
        assert name not in TABLES, f"{name} has two tables"
        TABLES[name] = Table(found, pattern, partial_rotation)


for _module in pkgutil.iter_modules(__path__):  # The import of a module registers its tables.
    importlib.import_module(f"{__name__}.{_module.name}")
