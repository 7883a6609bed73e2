"""A training step of a whole decoder: forward pass, loss, backward pass and AdamW. The step can use recomputation and
torch.compile, and can run on one device or sharded over ranks.

B batch, S length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel
from torch.utils.checkpoint import checkpoint

from llmbench.bench.correctness import check_factor
from llmbench.bench.experiments.train.sharding import DATA_PARALLEL, Sharding, shard
from llmbench.bench.extra_candidates.compiled import compiled
from llmbench.bench.pieces.blocks import decoder_of
from llmbench.bench.pieces.piece import Setting
from llmbench.bench.pieces.reduce import layer_of_each_kind
from llmbench.errors import CannotRunError
from llmbench.kernels.proof.accuracy import Verdict, check_against, severity
from llmbench.measure.clock import Call
from llmbench.measure.ranks import ALONE, Ranks
from llmbench.model.decoder import Decoder
from llmbench.model.implementations import implementation
from llmbench.model.residual import Residual

__all__ = ["TrainStep", "Trainer", "verdicts"]


class TrainStep(NamedTuple):
    """One variant of a training step, computed by the implementation `impl`.

    `recompute`: whether the backward pass of a layer first repeats the layer's forward pass (activation checkpointing).
    `compiled`: whether torch.compile compiles the model. `sharding`: how the model is split over the ranks; None for
    one device.
    """

    impl: str
    recompute: bool = False
    compiled: bool = False
    sharding: Sharding | None = None

    @property
    def name(self) -> str:
        """The name of the step in a row."""
        words = (self.sharding or "").upper(), "recompute" * self.recompute, "compiled" * self.compiled
        return " ".join((self.impl, *filter(None, words)))


class Trainer:
    """A model, its optimizer and a batch. Candidates with the same sharding can share a trainer, because each step sets
    its own implementation.

    `model` is sharded in place. `tokens` [B, S] contains the tokens of all ranks, and each data-parallel rank takes an
    equal part. The learning rate is 0, so that AdamW does all of its work but does not change the weights.
    """

    def __init__(
        self,
        model: Decoder,
        tokens: Tensor,
        targets: Tensor,
        *,
        sharding: Sharding | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.sharding = model, sharding
        if sharding in DATA_PARALLEL:
            tokens, targets = (part.chunk(ranks.size)[ranks.rank] for part in (tokens, targets))
        self.tokens, self.targets = tokens, targets
        if sharding:
            shard(model, sharding, init_device_mesh(tokens.device.type, (ranks.size,)))
        # These functions are built only once, because torch.compile would compile again for a new object.
        self._checkpointed_forwards = [(block, partial(_checkpointed, block.forward)) for block in model.layers]
        self.parameters = list(dict.fromkeys(model.parameters()))
        # A fused AdamW update needs tensors of one type, so plain tensors and DTensors are in separate groups.
        kinds = dict.fromkeys(map(type, self.parameters))
        groups = [{"params": [weight for weight in self.parameters if type(weight) is kind]} for kind in kinds]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)

    @property
    def nbytes(self) -> int:
        """The bytes of the weights and optimizer states on this rank."""
        states = (value for state in self.optimizer.state.values() for value in state.values())
        tensors = [*self.parameters, *(state for state in states if isinstance(state, Tensor))]
        return sum(_local(tensor).nbytes for tensor in tensors)

    def call(self, step: TrainStep) -> Call:
        """Return the call that runs the step. There are no gradients before and after the call."""
        loss = self.loss_call(step)

        def run() -> None:
            with self._context():
                loss().backward()
            self._average_gradients()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return run

    def loss_call(self, step: TrainStep) -> Call:
        """Return the call that computes the mean loss of this rank's tokens."""
        chosen = implementation(step.impl)
        if chosen.loss is not None and self.sharding == "tp":
            raise CannotRunError(
                f"impl {step.impl} does not support an output head that tensor parallelism splits", hint="use flash"
            )
        # With fullgraph, a model that torch cannot compile as a whole raises an error instead of running slowly.
        model: Any = compiled(self.model, fullgraph=True) if step.compiled else self.model

        def loss() -> Tensor:
            self.model.implementation = chosen
            self._set_recompute(step.recompute)
            out: Tensor = model(self.tokens, targets=self.targets)
            return out

        return loss

    def _set_recompute(self, enabled: bool) -> None:
        for block, checkpointed in self._checkpointed_forwards:
            if enabled:
                block.forward = checkpointed
            else:
                block.__dict__.pop("forward", None)

    def _average_gradients(self) -> None:
        """With expert parallelism, average the gradients over the ranks. FSDP does so itself.

        The rank of an expert already has the sum over the tokens of all ranks.
        """
        if self.sharding != "ep":
            return
        for weight in self.parameters:
            if weight.grad is not None:
                if not isinstance(weight, DTensor):
                    dist.all_reduce(weight.grad)
                _local(weight.grad).div_(dist.get_world_size())

    def _context(self) -> AbstractContextManager[Any]:
        """Return the context manager for a step. With tensor parallelism, the loss is computed on shards of the
        logits."""
        return loss_parallel() if self.sharding == "tp" else nullcontext()

    def gradients(self, step: TrainStep) -> tuple[Tensor, Tensor]:
        """Return the mean loss of the whole batch, and the gradients of all weights as one vector. Both are complete on
        each rank."""
        with self._context():
            mean = self.loss_call(step)()
            mean.backward()
        self._average_gradients()
        grads = [_whole(weight.grad).flatten() for weight in self.parameters if weight.grad is not None]
        self.optimizer.zero_grad(set_to_none=True)
        loss = _whole(mean.detach()).clone()
        if self.sharding in DATA_PARALLEL:
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        return loss, torch.cat(grads)


def _checkpointed(forward: Callable[..., Any], stream: Residual, *arguments: Any) -> Any:
    """Run the forward pass of a layer with activation checkpointing. The layer saves only its input: one tensor, the
    complete residual stream."""

    def run(x: Tensor, *rest: Any) -> Any:
        # `forward` changes the Residual. torch.compile does not allow a function to change an object that was created
        # outside the function, so the Residual is created here.
        return forward(Residual(x), *rest)

    return checkpoint(run, stream.whole(), *arguments, use_reentrant=False)


def _local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # only a DTensor has this method


def _whole(tensor: Any) -> Tensor:
    """Return the complete tensor, gathered from all ranks."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def verdicts(setting: Setting, step: TrainStep, ranks: Ranks = ALONE) -> list[Verdict]:
    """Check a step on a reduced model with one layer of each kind. The loss and gradients of the step are compared with
    those of plain torch in one process. The verdict on a tensor is the worst verdict of all ranks."""
    spec = layer_of_each_kind(setting.spec)
    small = setting.changed(spec=spec, batch=2 * ranks.size, seq_len=min(setting.seq_len, 64))
    model, version = decoder_of(small)
    shape = spec.vocab_size, small.batch, small.seq_len
    inputs = {"tokens": small.tokens(*shape), "targets": small.tokens(*shape, seed=1), "like": small.normal()}

    def sharded(tokens: Tensor, targets: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        trainer = Trainer(copy.deepcopy(model), tokens, targets, sharding=step.sharding, ranks=ranks)
        return trainer.gradients(step)

    def plain(tokens: Tensor, targets: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return Trainer(version(like.dtype), tokens, targets).gradients(TrainStep("standard"))

    unnamed = check_against(sharded, plain, inputs, factor=check_factor(step.impl, setting.device))
    named = [verdict._replace(tensor=name) for verdict, name in zip(unnamed, ("loss", "gradients"), strict=True)]
    return [max(same, key=severity) for same in zip(*ranks.gathered(named), strict=True)]
