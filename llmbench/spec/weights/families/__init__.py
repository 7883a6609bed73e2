"""The tables of all families. A table maps the tensors in the files of a family to the parameters of the model.

`table("llama", ...)` registers a table for one or more model types. A family gets a table only after a test shows that
its logits equal those of transformers, with weights that transformers wrote. A file here has the same name as the file
that imports the configs of these families, in `llmbench.spec.huggingface.families`. `common.py` has names that several
families share.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import NamedTuple

from llmbench.spec.weights.rules import Rule, rules

_NEVER_WEIGHTS = r".*\.rotary_emb\.inv_freq"
"""Buffers in older checkpoints. They are ignored, because the config determines their values."""


class Table(NamedTuple):
    """The rules of a family.

    - `ignored`: matches the names of tensors that are not read. The values of such tensors follow from the config, or
      do not change the logits.
    - `partial_rotation`: the class in transformers can rotate only a part of each head. Every other class rotates whole
      heads if the rotation is not scaled, even if the config asks for a part.
    """

    rules: tuple[Rule, ...]
    ignored: re.Pattern[str]
    partial_rotation: bool

    def ignores(self, name: str) -> bool:
        """Return whether a tensor in a file is ignored."""
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
    """Register one table for several model types.

    - `top`: the rules for parameters outside the layers.
    - `layers`: the rules for the parameters of a layer.
    - `at`: the prefix of a layer's names in the files.
    - `ignored`, `partial_rotation`: see Table.
    """
    all_rules = rules(top) + rules(layers, ours="layers.{i}.", theirs=at)
    pattern = re.compile(f"{_NEVER_WEIGHTS}|{ignored}" if ignored else _NEVER_WEIGHTS)
    for name in families:
        assert name not in TABLES, f"{name} has two tables"
        TABLES[name] = Table(all_rules, pattern, partial_rotation)


for _module in pkgutil.iter_modules(__path__):  # Importing a module registers its tables.
    importlib.import_module(f"{__name__}.{_module.name}")
