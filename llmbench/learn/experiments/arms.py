"""The arms of an experiment: variants of one model that train on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import torch

from llmbench.learn.data import Corpus
from llmbench.learn.loop import Trained, train
from llmbench.learn.memory import refuse_without_memory
from llmbench.learn.metrics import StepRow, Validation
from llmbench.learn.probe import Probe
from llmbench.learn.settings import Settings
from llmbench.model.create import build
from llmbench.model.decoder import Decoder
from llmbench.model.initialise import Initialisation
from llmbench.model.sigma_reparam import reparametrise
from llmbench.spec.model import ModelSpec
from llmbench.spec.override import override

__all__ = ["Arm", "trained_arm"]


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


def trained_arm(
    base: ModelSpec,
    arm: Arm,
    data: Corpus,
    settings: Settings,
    *,
    probes: Sequence[Probe] = (),
    on_step: Callable[[StepRow], object] = lambda row: None,
    on_validation: Callable[[Validation], object] = lambda validation: None,
) -> tuple[Decoder, Trained]:
    """Build and train the model of an arm. Equal seeds give equal batches in all arms.

    Raises DivergedError if a number is not finite, CannotRunError if the memory is too small, and the errors of
    `build`.
    """
    settings = msgspec.structs.replace(settings, **arm.settings)
    spec = arm.spec(base)
    refuse_without_memory(spec, settings, torch.device("cpu"))
    model = build(spec, init=arm.init, seed=settings.seed)
    if arm.reparametrised:
        reparametrise(model)
    return model, train(model, data, settings, probes=probes, on_step=on_step, on_validation=on_validation)
