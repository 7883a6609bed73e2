"""The training of one arm of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import torch

from llmbench.learn.data import Corpus
from llmbench.learn.experiments.arms import Arm
from llmbench.learn.loop import Trained, train
from llmbench.learn.memory import refuse_without_memory
from llmbench.learn.metrics import StepRow, Validation
from llmbench.learn.probe import Probe
from llmbench.learn.settings import Settings
from llmbench.model.create import build
from llmbench.model.decoder import Decoder
from llmbench.model.sigma_reparam import reparametrise
from llmbench.spec.model import ModelSpec

__all__ = ["trained_arm"]


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
        reparametrise(model, seed=settings.seed)
    return model, train(model, data, settings, probes=probes, on_step=on_step, on_validation=on_validation)
