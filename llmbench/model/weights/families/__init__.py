"""One table a family: which tensor of its files becomes which parameter.

`table("llama", ...)` registers one for those model types. A family stands here only once its logits were shown equal to
those of transformers, with weights that transformers wrote.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from typing import NamedTuple

from llmbench.model.weights.rules import Rule, rules

_NEVER_WEIGHTS = r".*\.rotary_emb\.inv_freq"
"""Buffers that older checkpoints hold and that follow from the config."""


class Table(NamedTuple):
    """The rules of a family, and a pattern of tensors in its files that hold nothing."""

    rules: tuple[Rule, ...]
    ignored: re.Pattern[str]

    def ignores(self, name: str) -> bool:
        """Whether a tensor of a file says nothing that the config does not."""
        return self.ignored.fullmatch(name) is not None


TABLES: dict[str, Table] = {}


def table(*families: str, top: str, layers: str, at: str = "model.layers.{i}.", ignored: str = "") -> None:
    """Register the rules outside the layers and those of a layer; their names of a layer begin with `at`."""
    found = rules(top) + rules(layers, ours="layers.{i}.", theirs=at)
    pattern = re.compile(f"{_NEVER_WEIGHTS}|{ignored}" if ignored else _NEVER_WEIGHTS)
    for name in families:
        assert name not in TABLES, f"{name} has two tables"
        TABLES[name] = Table(found, pattern)


PARTS_OF_HEADS = frozenset(
    """
    bamba codegen glm glm4 glm4_moe gpt_neox gptj laguna mellum mimo_v2_flash minimax_m2 minimax_m3_vl_text nemotron
    persimmon phi phi3 qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma solar_open stablelm
    """.split()  # noqa: SIM905
)
"""Families whose classes can rotate a part of each head; the others rotate whole ones even where a config says a part
(unless the rotation is scaled)."""

for _module in pkgutil.iter_modules(__path__):  # each registers its tables
    importlib.import_module(f"{__name__}.{_module.name}")
