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


WHOLE_HEADS = frozenset(
    """
    arcee cohere cohere2 cohere2_moe cwm dbrx dots1 ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon flex_olmo gemma
    gemma2 gemma3_text gpt_oss granite granite_swa granitemoe granitemoe_swa granitemoeshared helium hunyuan_v1_dense
    hunyuan_v1_moe hyperclovax internlm3 iquestcoder jais2 llama llama4_text ministral ministral3 mistral mixtral
    nanochat olmo olmo2 olmo3 olmoe phimoe qwen2 qwen2_moe qwen3 qwen3_moe seed_oss smollm3 starcoder2 vaultgemma
    """.split()  # noqa: SIM905
)
"""Families whose classes rotate whole heads even where a config says a part of them (and no scaling)."""

for _module in pkgutil.iter_modules(__path__):  # each registers its tables
    importlib.import_module(f"{__name__}.{_module.name}")
