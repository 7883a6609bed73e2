"""The training loop: forward and backward pass, clipping, learning rate, update. It follows nanoGPT's train.py.

Everything random in a step depends on the seed and the step only. A run that stops and goes on therefore computes the
same numbers as a run that never stopped.

Dimensions: B sequences, S tokens per sequence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from llmbench.learn.data import Corpus
from llmbench.learn.faults import DivergedError, cause_of, module_of, refuse_divergence
from llmbench.learn.metrics import StepRow, Validation
from llmbench.learn.parallel import (
    mean,
    own_part,
    refuse_unequal_parts,
    replica_of,
    reshard,
    shard,
    unsynchronised,
    whole,
)
from llmbench.learn.probe import Moment, Probe
from llmbench.learn.refusals import refuse_other_models
from llmbench.learn.schedule import learning_rate
from llmbench.learn.settings import Settings
from llmbench.measure.ranks import ALONE, Ranks
from llmbench.model.decoder import Decoder
from llmbench.model.initialise import is_matrix
from llmbench.model.routing import balance_loss, record_routing
from llmbench.sizing.flops import count_flops
from llmbench.sizing.workload import Workload

__all__ = ["LAST_VALIDATION", "Trained", "optimizer_for", "train", "validation_loss"]


VALIDATION_TOKENS = 4096
"""The tokens of one forward pass of a validation, if the batches of the training are smaller. Many passes over few
tokens would take longer than the training."""
LAST_VALIDATION = 2**19
"""The most tokens that the last validation reads. The validation part of a large text could take longer than the
training."""


class Trained(NamedTuple):
    """The rows of the steps that ran, the validations, and the time of the steps. The model was trained in place."""

    steps: list[StepRow]
    validations: list[Validation]
    seconds: float

    @property
    def losses(self) -> list[float]:
        """The training loss of each step, in nats."""
        return [row.loss for row in self.steps]


def train(
    model: Decoder,
    data: Corpus,
    settings: Settings,
    *,
    probes: Sequence[Probe] = (),
    optimizer: torch.optim.Optimizer | None = None,
    after: int = 0,
    stop_at: int | None = None,
    seconds: float = 0.0,
    peak_flops_per_s: float | None = None,
    on_step: Callable[[StepRow], object] = lambda row: None,
    on_validation: Callable[[Validation], object] = lambda validation: None,
    save: Callable[[int, torch.optim.Optimizer], object] = lambda step, optimizer: None,
    ranks: Ranks = ALONE,
) -> Trained:
    """Train the model in place, and return the figures of each step.

    - `after`: the last step that an earlier run has finished. `optimizer`: its optimizer, with its states.
      `seconds`: its training time.
    - `stop_at`: the last step of this run. None: `settings.steps`, where the schedule ends.
    - `peak_flops_per_s`: the peak of one device, from which MFU is computed. None: unknown.
    - `on_step`, `on_validation`: called with each new row.
    - `save`: called with the step after each validation, and at the end.
    - `ranks`: each rank trains on an equal part of every batch, and the gradients are averaged.

    The random generators of the caller keep their states. Raises DivergedError if the loss or a gradient is not finite;
    the weights are then those of the last good step. Raises it also if a weight, a state of the optimizer or the loss
    is not finite at a validation. `save` is therefore called for finite weights and states only.
    """
    data.refuse_short(settings.seq_len)
    refuse_unequal_parts(settings, ranks)
    refuse_other_models(model.spec)
    before, device = seconds, model.embedding.weight.device
    shard(model, settings, ranks)
    optimizer = optimizer_for(model, settings) if optimizer is None else optimizer
    model.dropout = settings.dropout
    if settings.compile:
        model.compile()
    replica = replica_of(model, ranks)
    flops = count_flops(model.spec, Workload.train(settings.seq_len, settings.batch)).total
    peak = None if peak_flops_per_s is None else ranks.size * peak_flops_per_s
    steps: list[StepRow] = []
    validations: list[Validation] = []

    def validate(step: int, *, every: bool) -> None:
        loss = validation_loss(model, data, settings, whole=every)
        reshard(model)
        refuse_divergence(step, model, optimizer)
        if not math.isfinite(loss):
            first = (part.to(device) for part in data.windows(settings.seq_len, settings.batch))
            raise DivergedError(step, module_of(model, *first) or "the validation loss is not finite")
        validations.append(Validation(step=step, tokens=step * settings.tokens, validation_loss=loss))
        on_validation(validations[-1])

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if after == 0:
            validate(0, every=False)
        for step in range(after + 1, (stop_at or settings.steps) + 1):
            start = time.perf_counter()
            torch.manual_seed((settings.seed * 1_000_003 + step * ranks.size + ranks.rank) % 2**63)  # dropout
            model.train()
            batch = data.batch(step, seed=settings.seed, sequences=settings.batch, seq_len=settings.seq_len)
            mine = [own_part(rows, ranks).to(device) for rows in batch]
            micro = list(zip(*(rows.chunk(settings.accumulate) for rows in mine), strict=True))
            total = torch.zeros((), device=device)
            for index, (tokens, targets) in enumerate(micro):
                with unsynchronised(replica, index < len(micro) - 1), _balancing(model, settings) as imbalance:
                    with _autocast(settings, device):
                        loss = replica(tokens, targets=targets)
                    ((loss + imbalance()) / settings.accumulate).backward()
                total += loss.detach() / settings.accumulate
            rate = _set_rate(optimizer, step, settings)
            moment = Moment(step, model, optimizer, tokens, targets, mean(total, ranks), rate)
            for probe in probes:
                probe.gradients(moment)
            weights = [weight for weight in model.parameters() if weight.grad is not None]
            parts = torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
            norm = whole(parts)
            if not (math.isfinite(moment.loss) and bool(norm.isfinite())):
                raise DivergedError(step, cause_of(model, *mine))
            clipped = 0.0 < settings.clip < float(norm)
            if clipped:
                torch.nn.utils.clip_grads_with_norm_(weights, settings.clip, parts)
            optimizer.step()
            figures: dict[str, Any] = {}
            for probe in probes:
                figures |= probe.updated(moment) or {}
            optimizer.zero_grad(set_to_none=True)
            took = time.perf_counter() - start
            seconds += took
            row = StepRow(
                step=step,
                tokens=step * settings.tokens,
                seconds=seconds,
                loss=moment.loss,
                lr=moment.lr,
                grad_norm=float(norm),
                clipped=clipped,
                tokens_per_s=settings.tokens / took,
                mfu=None if peak is None else flops / took / peak,
                figures=figures,
            )
            steps.append(row)
            on_step(row)
            last = step == (stop_at or settings.steps)
            if last or step % settings.validate_every == 0:
                validate(step, every=last)
                save(step, optimizer)
    return Trained(steps, validations, seconds - before)


def optimizer_for(model: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """Return the optimizer. Only matrices and tables have weight decay; biases and the weights of norms have none."""
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    matrices = [weight for name, weight in weights.items() if is_matrix(name, weight)]
    others = [weight for name, weight in weights.items() if not is_matrix(name, weight)]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.beta1)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), fused=True)


@torch.no_grad()
def validation_loss(model: Decoder, data: Corpus, settings: Settings, *, whole: bool = True) -> float:
    """Return the mean loss over windows of the validation part, in nats.

    `whole`: whether to read `LAST_VALIDATION` tokens, or `settings.validation_batches` batches of windows. The windows
    are at equal distances. If there are not more of them, all are read.
    """
    device = model.embedding.weight.device
    most = LAST_VALIDATION // settings.seq_len if whole else settings.validation_batches * settings.batch
    rows = max(settings.batch, VALIDATION_TOKENS // settings.seq_len)
    model.eval()
    total, count = 0.0, 0
    for tokens, targets in zip(*(part.split(rows) for part in data.windows(settings.seq_len, most)), strict=True):
        with _autocast(settings, device):
            total += float(model(tokens.to(device), targets=targets.to(device))) * tokens.numel()
        count += tokens.numel()
    return total / count


def _set_rate(optimizer: torch.optim.Optimizer, step: int, settings: Settings) -> float:
    """Set the learning rate of a step, and return it."""
    rate = learning_rate(
        step,
        schedule=settings.schedule,
        lr=settings.lr,
        min_lr=settings.lr_end * settings.lr,
        warmup=settings.warmup,
        steps=settings.steps,
    )
    for group in optimizer.param_groups:
        group["lr"] = rate
    return rate


def _autocast(settings: Settings, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if settings.precision == "bf16" else nullcontext()


@contextmanager
def _balancing(model: Decoder, settings: Settings) -> Iterator[Callable[[], Tensor | float]]:
    """Yield a function that returns what the load of the experts adds to the loss of the forward pass in this block."""
    if not settings.balance:
        yield lambda: 0.0
        return
    with record_routing(model) as routings:
        yield lambda: settings.balance * balance_loss(routings.values())
