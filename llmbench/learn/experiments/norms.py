"""Training dynamics: how the placement of norms, the warm-up and the first weights decide whether a deep model trains.

Each arm trains at several learning rates, because a single rate cannot tell an arm that fails from an arm that needs a
lower rate (arXiv 2309.14322). All arms read the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from llmbench.learn.data import Corpus
from llmbench.learn.experiments.arms import Arm
from llmbench.learn.experiments.placements import arms_of, base_of
from llmbench.learn.experiments.statistics import has_learned
from llmbench.learn.experiments.training import trained_arm
from llmbench.learn.faults import DivergedError
from llmbench.learn.metrics import StepRow
from llmbench.learn.probes import FIGURES, Observer, PerLayer
from llmbench.learn.probes.warnings import Warning, warnings_of
from llmbench.learn.settings import Settings
from llmbench.spec.model import ModelSpec

__all__ = ["Outcome", "dynamics", "failed"]

OBSERVED = 4
"""The sequences of the forward pass of the probes."""


class Outcome(NamedTuple):
    """One training.

    - `losses`: the validation loss in nats after each of some steps.
    - `diverged`: why the training stopped: NaN or an infinite number. Empty: it did not stop.
    - `observations`: the figures of the probes at each observed step.
    """

    arm: str
    layers: int
    lr: float
    seed: int
    losses: list[tuple[int, float]]
    diverged: str
    observations: dict[int, dict[str, PerLayer]]
    warnings: list[Warning]
    seconds: float

    @property
    def loss(self) -> float | None:
        """The last validation loss in nats. None: the training stopped before its end."""
        return None if self.diverged or not self.losses else self.losses[-1][1]


def failed(outcome: Outcome, unigram: float) -> bool:
    """Return whether the model has learned hardly more than the frequencies of the tokens, or stopped."""
    return not has_learned(outcome.loss, unigram)


def dynamics(
    spec: ModelSpec,
    data: Corpus,
    settings: Settings,
    names: Sequence[str],
    depths: Sequence[int],
    rates: Sequence[float],
    seeds: Sequence[int],
    *,
    on_step: Callable[[str, StepRow], object] = lambda name, row: None,
    on_outcome: Callable[[Outcome], object] = lambda outcome: None,
) -> list[Outcome]:
    """Train each arm at each depth, learning rate and seed. `on_outcome` is called after each training.

    Raises SpecError if the model has no such variant.
    """
    outcomes = []
    for layers in depths:
        base = base_of(spec, layers)
        arms = arms_of(names, layers)
        for arm in arms:
            arm.spec(base)  # refuse a variant before the first training
        for arm in arms:
            for rate in rates:
                for seed in seeds:
                    chosen = msgspec.structs.replace(settings, lr=rate, seed=seed)
                    outcomes.append(_outcome(base, arm, layers, data, chosen, on_step))
                    on_outcome(outcomes[-1])
    return outcomes


def _outcome(
    base: ModelSpec,
    arm: Arm,
    layers: int,
    data: Corpus,
    settings: Settings,
    on_step: Callable[[str, StepRow], object],
) -> Outcome:
    if "warmup" in arm.settings:  # a share of the steps
        arm = arm._replace(settings={**arm.settings, "warmup": round(arm.settings["warmup"] * settings.steps)})
    observer = Observer(data.windows(settings.seq_len, OBSERVED)[0], FIGURES)
    losses: list[tuple[int, float]] = []
    diverged, seconds = "", 0.0

    def stepped(row: StepRow) -> None:
        nonlocal seconds
        seconds = row.seconds
        on_step(f"{arm.name}, {layers} layers, rate {settings.lr:g}", row)

    try:
        trained_arm(
            base,
            arm,
            data,
            settings,
            probes=[observer],
            on_step=stepped,
            on_validation=lambda found: losses.append((found.step, found.validation_loss)),
        )
    except DivergedError as problem:
        diverged = str(problem)
    seen = observer.observations
    return Outcome(arm.name, layers, settings.lr, settings.seed, losses, diverged, seen, warnings_of(seen), seconds)
