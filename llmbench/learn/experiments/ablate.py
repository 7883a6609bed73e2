"""Ablation: what does each part of a design change, in size, time and loss?

All designs train with the same seeds, and so on the same batches. Differences of losses are paired by seed.

Dimensions: B sequences, S tokens per sequence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple

import msgspec
import torch

from llmbench.learn.data import Corpus
from llmbench.learn.experiments.arms import Arm
from llmbench.learn.experiments.designs import Design, Size
from llmbench.learn.experiments.statistics import Difference, has_learned, paired
from llmbench.learn.experiments.training import trained_arm
from llmbench.learn.faults import DivergedError
from llmbench.learn.loop import optimizer_for
from llmbench.learn.memory import refuse_without_memory, step_bytes
from llmbench.learn.metrics import StepRow
from llmbench.learn.settings import Settings
from llmbench.learn.threads import choose_threads
from llmbench.measure.clock import CpuClock, compare
from llmbench.measure.measurement import Measurement
from llmbench.model.create import build
from llmbench.model.decoder import Decoder
from llmbench.model.mixers import new_cache
from llmbench.sizing.flops import count_flops
from llmbench.sizing.kvcache import kv_cache
from llmbench.sizing.params import count_parameters
from llmbench.sizing.workload import Workload
from llmbench.spec.model import ModelSpec

__all__ = ["Costs", "Outcome", "ablate", "costs_of", "difference"]


BUDGET_S = 0.2
"""The time for all samples of small models, in seconds. Larger models get ten samples each, however long they take."""


class Costs(NamedTuple):
    """The predicted size of a design, and its measured times on this CPU.

    - `train_flops_per_token`: of the forward and the backward pass.
    - `kv_bytes_per_token`: of the cache in bf16.
    - `memory_bytes`: peak of a training step in fp32 on a GPU, without the workspaces of its libraries.
    - `step`: a training step of B sequences. `decode`: one token of a sequence of S tokens, in the mean.
    """

    parameters: int
    train_flops_per_token: float
    kv_bytes_per_token: int
    memory_bytes: int
    step: Measurement
    decode: Measurement
    tokens: int

    @property
    def step_s(self) -> float:
        """The time of a training step in seconds."""
        return self.step.median_s

    @property
    def decode_s_per_token(self) -> float:
        """The time of a token in seconds, without a batch, in the mean over the positions of a sequence."""
        return self.decode.median_s / self.tokens

    @property
    def remarks(self) -> list[str]:
        """What disturbed the times: the kinds of remarks of both measurements."""
        return sorted({kind for measurement in (self.step, self.decode) for kind in measurement.remarks_by_kind()})


class Outcome(NamedTuple):
    """The trainings of one design.

    - `losses`: by learning rate, the validation loss of each seed in nats. None: the training stopped, because a number
      was not finite.
    - `unigram`: the loss of guessing by frequency, in nats. It decides which trainings failed.
    """

    costs: Costs
    losses: Mapping[float, Sequence[float | None]]
    unigram: float

    @property
    def rate(self) -> float:
        """The learning rate at which the fewest trainings failed. Among several ones, that with the lowest loss."""

        def rank(rate: float) -> tuple[int, float]:
            loss = self._mean(rate)
            return self._failed(rate), math.inf if loss is None else loss

        return min(self.losses, key=rank)

    @property
    def best(self) -> Sequence[float | None]:
        """The loss of each seed at the best learning rate, in nats. None: the training stopped."""
        return self.losses[self.rate]

    @property
    def loss(self) -> float | None:
        """The mean loss at the best learning rate in nats, over the seeds that learned. If none did, the mean over the
        seeds that did not stop. None: all stopped."""
        return self._mean(self.rate)

    @property
    def failed(self) -> int:
        """The number of seeds that failed at the best learning rate: they stopped, or learned hardly anything."""
        return self._failed(self.rate)

    def learned(self, loss: float | None) -> bool:
        """Return whether a training with this loss has learned more than the frequencies of the tokens."""
        return has_learned(loss, self.unigram)

    def _failed(self, rate: float) -> int:
        return sum(not self.learned(loss) for loss in self.losses[rate])

    def _mean(self, rate: float) -> float | None:
        finite = [loss for loss in self.losses[rate] if loss is not None]
        counted = [loss for loss in finite if self.learned(loss)] or finite
        return fmean(counted) if counted else None


def difference(outcome: Outcome, before: Outcome) -> tuple[Difference | None, int]:
    """Return the loss minus that of `before`, paired by seed, and the number of pairs.

    A pair counts only if both trainings learned. Otherwise its difference would be the size of a failure, and one
    failure among several seeds would look like noise. None: there is no such pair.
    """
    pairs = [
        new - old
        for new, old in zip(outcome.best, before.best, strict=True)
        if new is not None and old is not None and outcome.learned(new) and before.learned(old)
    ]
    return paired(pairs) if pairs else None, len(pairs)


def ablate(
    size: Size,
    data: Corpus,
    settings: Settings,
    designs: Iterable[Design],
    rates: Sequence[float],
    seeds: Sequence[int],
    *,
    on_step: Callable[[Design, StepRow], object] = lambda design, row: None,
) -> dict[Design, Outcome]:
    """Time each design, and train it with each learning rate and each seed. Equal designs are trained once.

    `on_step(design, row)` is called after each training step.

    Raises SpecError if the size does not allow a design, LLMBenchError if the text is too short, and CannotRunError if
    the memory is too small.
    """
    specs = {design: design.spec(size) for design in dict.fromkeys(designs)}
    data.refuse_short(settings.seq_len)
    for spec in specs.values():
        refuse_without_memory(spec, settings, torch.device("cpu"))
    torch.set_num_threads(choose_threads(build(next(iter(specs.values()))), data, settings))
    costs = costs_of(specs, data, settings)
    outcomes = {}
    for design, spec in specs.items():
        losses = {}
        for rate in rates:
            chosen = [msgspec.structs.replace(settings, lr=rate, seed=seed) for seed in seeds]
            losses[rate] = [_loss(spec, data, each, partial(on_step, design)) for each in chosen]
        outcomes[design] = Outcome(costs[design], losses, data.unigram)
    return outcomes


def _loss(spec: ModelSpec, data: Corpus, settings: Settings, on_step: Callable[[StepRow], object]) -> float | None:
    try:
        _, trained = trained_arm(spec, Arm(spec.name), data, settings, on_step=on_step)
    except DivergedError:
        return None
    return trained.validations[-1].validation_loss


def costs_of(specs: Mapping[Design, ModelSpec], data: Corpus, settings: Settings) -> dict[Design, Costs]:
    """Return the size and the times of each design. The designs are timed in turn, so that all see the same machine."""
    timed = partial(compare, clock=CpuClock(), budget_s=BUDGET_S)
    models = {str(index): build(spec) for index, spec in enumerate(specs.values())}
    steps = timed({name: _step(model, data, settings) for name, model in models.items()})
    decoding = {name: partial(_decode, model.eval(), settings.seq_len) for name, model in models.items()}
    decodes = timed(decoding)
    costs = {}
    for (design, spec), name in zip(specs.items(), models, strict=True):
        costs[design] = Costs(
            parameters=count_parameters(spec).total,
            train_flops_per_token=count_flops(spec, Workload.train(settings.seq_len, settings.batch)).per_token,
            kv_bytes_per_token=kv_cache(spec, settings.seq_len).bytes_per_token,
            memory_bytes=step_bytes(spec, settings),
            step=steps[name],
            decode=decodes[name],
            tokens=settings.seq_len,
        )
    return costs


def _step(model: Decoder, data: Corpus, settings: Settings) -> Callable[[], object]:
    """Return a call that runs a training step: forward and backward pass, and update."""
    tokens, targets = data.batch(1, seed=settings.seed, sequences=settings.batch, seq_len=settings.seq_len)
    optimizer = optimizer_for(model, settings)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(tokens, targets=targets).backward()
        optimizer.step()

    return step


@torch.no_grad()
def _decode(model: Decoder, length: int) -> None:
    """Read a sequence of `length` tokens, one after another, with a cache."""
    cache = new_cache(model.spec, 1, length, dtype=torch.float32, device="cpu")
    token = torch.zeros(1, 1, dtype=torch.int64)
    for _ in range(length):
        model(token, cache=cache)
