"""The arms of an experiment: variants of one model that train on the same batches. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

if TYPE_CHECKING:
    from llmbench.model.initialise import Initialisation

__all__ = ["Arm"]


class Arm(NamedTuple):
    """A variant of a model.

    - `changes`: the fields of the spec that differ, as in `--set`.
    - `init`: how the weights get their first values.
    - `settings`: the settings of the training that differ.
    - `reparametrised`: whether the matrices are trained with σReparam.
    """

    name: str
    changes: Mapping[str, Any] = {}
    init: Initialisation = "scaled"
    settings: Mapping[str, Any] = {}
    reparametrised: bool = False

    def spec(self, base: ModelSpec) -> ModelSpec:
        """Return the spec of this arm. Raises SpecError if the model has no such variant."""
        return override(base, self.changes)
