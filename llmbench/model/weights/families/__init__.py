"""Tables of names: which tensor of a family's files becomes which parameter.

`table("llama", ...)` registers one table for these model types. A table stands here only once the logits of the family
were shown equal to those of transformers, with weights that transformers wrote. The files have the same names as those
of the importers in `llmbench.spec.huggingface.families`; `common.py` has the names that lineages share.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import NamedTuple

from llmbench.model.weights.rules import Rule, rules

_NEVER_WEIGHTS = r".*\.rotary_emb\.inv_freq"
"""Buffers of older checkpoints that follow from the config."""


class Table(NamedTuple):
    """The rules of a family.

    `ignored` matches tensors of its files that follow from the config or serve no logits. `partial_rotation` says that
    the class in transformers can rotate a part of each head. Other classes rotate whole heads even where the config
    states a part, unless the rotation is scaled.
    """

    rules: tuple[Rule, ...]
    ignored: re.Pattern[str]
    partial_rotation: bool

    def ignores(self, name: str) -> bool:
        """Whether a tensor of a file is left out."""
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
    """Register the rules outside the layers (`top`) and of a layer (`layers`); the file's names of a layer start with
    `at`."""
    found = rules(top) + rules(layers, ours="layers.{i}.", theirs=at)
    pattern = re.compile(f"{_NEVER_WEIGHTS}|{ignored}" if ignored else _NEVER_WEIGHTS)
    for name in families:
        assert name not in TABLES, f"{name} has two tables"
        TABLES[name] = Table(found, pattern, partial_rotation)


for _module in pkgutil.iter_modules(__path__):  # each registers its tables
    importlib.import_module(f"{__name__}.{_module.name}")
