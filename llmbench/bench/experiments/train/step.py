"""A training step of a real decoder: forward, loss, backward, AdamW; plain, recomputed or compiled, on one device or
spread over ranks.

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
from torch.distributed.tensor.parallel import loss_parallel
from torch.utils.checkpoint import checkpoint

from llmbench.bench.compiling import compiled
from llmbench.bench.correctness import check_factor
from llmbench.bench.experiments.train.sharding import Sharding, shard
from llmbench.bench.pieces.blocks import decoder_of
from llmbench.bench.pieces.piece import Setting
from llmbench.bench.pieces.reduce import layer_of_each_kind
from llmbench.errors import CannotRunError
from llmbench.kernels.proof.accuracy import Verdict, check_against, severity
from llmbench.measure.clock import Call
from llmbench.measure.ranks import ALONE, Ranks
from llmbench.model.decoder import Decoder
from llmbench.model.implementations import implementation
from llmbench.model.norms import Residual

__all__ = ["Trainer", "Way", "verdicts"]


class Way(NamedTuple):
    """How a step is computed: by which implementation; `recompute`: each layer's forward again in its backward, from
    its input (activation checkpointing); `compiled`: by torch.compile; `sharding` over ranks."""

    impl: str
    recompute: bool = False
    compiled: bool = False
    sharding: Sharding | None = None

    @property
    def name(self) -> str:
        """As a row has it."""
        words = (self.sharding or "").upper(), "recompute" * self.recompute, "compiled" * self.compiled
        return " ".join((self.impl, *filter(None, words)))


class Trainer:
    """A model, its optimizer and a batch. Rivals that are spread alike may share one: each step sets how it computes.

    `model` is spread in place. `batch` [B, S] is that of all ranks; data-parallel ones take equal parts of it. The
    learning rate is 0: AdamW does all of its work, and the weights stay what they are.
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
        if sharding == "fsdp":
            tokens, targets = (part.chunk(ranks.size)[ranks.rank] for part in (tokens, targets))
        self.tokens, self.targets = tokens, targets
        if sharding:
            shard(model, sharding, init_device_mesh(tokens.device.type, (ranks.size,)))
        # made once: to torch.compile another object is another model
        self._again = [(block, partial(_checkpointed, block.forward)) for block in model.layers]
        self.parameters = list(dict.fromkeys(model.parameters()))
        kinds = dict.fromkeys(map(type, self.parameters))  # one kernel does not update tensors of several kinds
        groups = [{"params": [each for each in self.parameters if type(each) is kind]} for kind in kinds]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)

    @property
    def nbytes(self) -> int:
        """Bytes of weights and optimizer states on this rank."""
        states = (value for state in self.optimizer.state.values() for value in state.values())
        tensors = [*self.parameters, *(state for state in states if isinstance(state, Tensor))]
        return sum(_local(tensor).nbytes for tensor in tensors)

    def by(self, way: Way) -> Call:
        """A step in that way. It ends without gradients, as it began."""
        loss = self.loss_by(way)

        def step() -> None:
            with self._context():
                loss().backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

        return step

    def loss_by(self, way: Way) -> Call:
        """The mean loss of this rank's tokens, computed that way."""
        how = implementation(way.impl)
        if how.loss is not None and self.sharding == "tp":
            raise CannotRunError(f"impl {way.impl} needs the head's whole matrix", hint="use flash")
        # whole, or an error: what is not compiled would be timed under its name
        model: Any = compiled(self.model, fullgraph=True) if way.compiled else self.model

        def loss() -> Tensor:
            self.model.implementation = how
            self._recompute(way.recompute)
            out: Tensor = model(self.tokens, targets=self.targets)
            return out

        return loss

    def _recompute(self, wanted: bool) -> None:
        for block, again in self._again:
            if wanted:
                block.forward = again
            else:
                block.__dict__.pop("forward", None)

    def _context(self) -> AbstractContextManager[Any]:
        """Where the vocabulary is split, the loss is taken of its shards."""
        return loss_parallel() if self.sharding == "tp" else nullcontext()

    def gradients(self, way: Way) -> tuple[Tensor, Tensor]:
        """The mean loss of the whole batch, and all gradients of its weights as one vector, both whole on each rank."""
        with self._context():
            mean = self.loss_by(way)()
            mean.backward()
        found = torch.cat([_whole(each.grad).flatten() for each in self.parameters if each.grad is not None])
        self.optimizer.zero_grad(set_to_none=True)
        loss = _whole(mean.detach()).clone()
        if self.sharding == "fsdp":
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        return loss, found


def _checkpointed(forward: Callable[..., Any], stream: Residual, *given: Any) -> Any:
    """A layer that keeps what it reads and no more: one tensor, the stream with its last sum done."""
    return checkpoint(forward, Residual(stream.whole()), *given, use_reentrant=False)


def _local(tensor: Tensor) -> Tensor:
    """What this rank has of it."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # a DTensor


def _whole(tensor: Any) -> Tensor:
    """All of it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def verdicts(setting: Setting, way: Way, ranks: Ranks = ALONE) -> list[Verdict]:
    """Loss and gradients of a layer of each kind, held against those of plain torch in one process; the worst of all
    ranks."""
    spec = layer_of_each_kind(setting.spec)
    small = setting.but(spec=spec, batch=2 * ranks.size, seq_len=min(setting.seq_len, 64))
    model, version = decoder_of(small)
    shape = spec.vocab_size, small.batch, small.seq_len
    inputs = {"tokens": small.tokens(*shape), "targets": small.tokens(*shape, seed=1), "like": small.normal()}

    def spread(tokens: Tensor, targets: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        trainer = Trainer(copy.deepcopy(model), tokens, targets, sharding=way.sharding, ranks=ranks)
        return trainer.gradients(way)

    def plain(tokens: Tensor, targets: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return Trainer(version(like.dtype), tokens, targets).gradients(Way("standard"))

    found = check_against(spread, plain, inputs, factor=check_factor(way.impl, setting.device))
    named = [each._replace(tensor=name) for each, name in zip(found, ("loss", "gradients"), strict=True)]
    return [max(same, key=severity) for same in zip(*ranks.gathered(named), strict=True)]
