"""Data-parallel training: how the ranks share a batch, and average their losses and gradients (DDP)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from llmbench.errors import LLMBenchError
from llmbench.learn.settings import Settings
from llmbench.measure.ranks import Ranks
from llmbench.model.decoder import Decoder

__all__ = ["mean", "own_part", "refuse_unequal_parts", "replica_of", "unsynchronised"]


def refuse_unequal_parts(settings: Settings, ranks: Ranks) -> None:
    """Raise LLMBenchError if the batch cannot be divided equally among the ranks and their micro-batches."""
    if settings.batch % (settings.accumulate * ranks.size):
        raise LLMBenchError(
            f"a batch of {settings.batch} sequences cannot be divided equally among {ranks.size} ranks with "
            f"{settings.accumulate} micro-batches each"
        )


def replica_of(model: Decoder, ranks: Ranks) -> nn.Module:
    """Return the module whose forward pass trains the model. With several ranks, it averages the gradients."""
    if ranks.size == 1:
        return model
    # Experts that get no token have no gradient.
    return DistributedDataParallel(model, find_unused_parameters=model.spec.is_moe)


def own_part(batch: Tensor, ranks: Ranks) -> Tensor:
    """Return this rank's sequences of a batch."""
    return batch.chunk(ranks.size)[ranks.rank]


def mean(loss: Tensor, ranks: Ranks) -> float:
    """Return the mean of the losses of all ranks."""
    if ranks.size > 1:
        dist.all_reduce(loss)
    return float(loss) / ranks.size


def unsynchronised(replica: nn.Module, more: bool) -> AbstractContextManager[Any]:
    """Return the context of a micro-batch. Only if there is no further one do the ranks average their gradients."""
    return replica.no_sync() if more and isinstance(replica, DistributedDataParallel) else nullcontext()
