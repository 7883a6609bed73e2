"""The names that the files of a checkpoint give to the modules of a model.

The tables of weight names (`llmbench.spec.weights.families`) have them. A family without a table gets the names that
most families share.
"""

from __future__ import annotations

import re
from functools import lru_cache

from llmbench.spec.model import ModelSpec
from llmbench.spec.weights.families import TABLES
from llmbench.spec.weights.families.common import (
    ATTENTION,
    EXPERTS,
    FUSED_GATED,
    GATED,
    MIXTRAL_EXPERTS,
    PRE_NORMS,
    SHARED_EXPERT,
    SHARED_EXPERTS,
    TOP,
    UP_DOWN,
)
from llmbench.spec.weights.families.deepseek import INDEXER, LATENT
from llmbench.spec.weights.rules import Rule, rules

_INSIDE = ("", "language_model.", "model.language_model.", "language_model.model.")
"""What can stand before the names of the text part in a multimodal checkpoint."""

_OUTER = re.compile(r"^(?:model|transformer|backbone|gpt_neox|bert|roberta)\.")
"""What the files of some checkpoints leave out before the names of the text part (GPT-2)."""


@lru_cache(maxsize=1)
def _common() -> tuple[Rule, ...]:
    layers = ATTENTION + LATENT + INDEXER + EXPERTS + MIXTRAL_EXPERTS + SHARED_EXPERT + SHARED_EXPERTS
    layers += GATED + FUSED_GATED + UP_DOWN + PRE_NORMS
    return rules(TOP) + rules(layers, ours="layers.{i}.", theirs="model.layers.{i}.")


class ModuleNames:
    """The names of the modules of one model in the files of a checkpoint."""

    def __init__(self, spec: ModelSpec) -> None:
        table = TABLES.get(spec.family)
        self._rules = _common() if table is None else table.rules
        self._layers = spec.num_hidden_layers
        self._templates: dict[str, tuple[str, ...]] = {}

    def names_of(self, op: str, layer: int | None) -> list[str]:
        """Return every name that files can give to the module of an op.

        op: name of the op, where `{}` stands for the index of the layer. layer: index of the layer, if it has one.

        An expert has the index 0. A module for multi-token prediction has the index of a layer after the last one.
        """
        if op not in self._templates:
            self._templates[op] = self._find(op)
        if layer is None:
            return list(self._templates[op])
        if not op.startswith("mtp."):
            return [name.replace("{i}", str(layer)) for name in self._templates[op]]
        after, own = str(self._layers + layer), str(layer)
        names = [name.replace("{i}", after) for name in self._templates[op]]
        return names + [name.replace("model.layers.{i}", f"mtp.layers.{own}") for name in self._templates[op]]

    def _find(self, op: str) -> tuple[str, ...]:
        ours = op.replace("mtp.{}", "layers.{}").replace("{}", "0")
        found: list[str] = []
        for rule in self._rules:
            for name in (f"{ours}.weight", ours):
                match = rule.pattern.fullmatch(name)
                if match is not None:
                    rest = match.groupdict().get("rest", "")
                    found += [their.replace("*", rest).replace("{e}", "0") for their in rule.theirs]
        modules = [re.sub(r"\.weight$", "", name) for name in found] or [op.replace("{}", "{i}")]
        inside = [_OUTER.sub("", module) for module in modules]
        return tuple(dict.fromkeys([*modules, *(at + name for name in inside for at in _INSIDE)]))
