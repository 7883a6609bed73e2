"""Data-parallel training: how the ranks share a batch, and average their losses and gradients.

With DDP, each rank has the whole model. With FSDP2, each rank has a part of every weight, gradient and optimizer state.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from llmbench.errors import LLMBenchError
from llmbench.learn.settings import Settings
from llmbench.measure.ranks import Ranks
from llmbench.model.decoder import Decoder
from llmbench.model.fully_sharded import split_weights

__all__ = [
    "divided_like",
    "mean",
    "own_part",
    "refuse_unequal_parts",
    "replica_of",
    "reshard",
    "shard",
    "unsynchronised",
    "whole",
]


def refuse_unequal_parts(settings: Settings, ranks: Ranks) -> None:
    """Raise LLMBenchError if the batch cannot be divided equally among the ranks and their micro-batches."""
    if settings.batch % (settings.accumulate * ranks.size):
        raise LLMBenchError(
            f"a batch of {settings.batch} sequences cannot be divided equally among {ranks.size} ranks with "
            f"{settings.accumulate} micro-batches each"
        )


def shard(model: Decoder, settings: Settings, ranks: Ranks) -> None:
    """Divide the weights among the ranks, in place, if the settings say so. Do this before the optimizer is made."""
    if settings.sharding == "ddp" or ranks.size == 1 or isinstance(model, FSDPModule):
        return
    split_weights(model, init_device_mesh(model.embedding.weight.device.type, (ranks.size,)))


def reshard(model: Decoder) -> None:
    """Give each rank only its parts of the weights again. A forward pass without a backward pass leaves some whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be divided among the ranks. All ranks must call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """Return this rank's part of a whole tensor with the shape of `weight`, if the weight is divided."""
    if not isinstance(weight, DTensor) or tensor.shape != weight.shape:
        return tensor
    return distribute_tensor(tensor, weight.device_mesh, weight.placements)


def replica_of(model: Decoder, ranks: Ranks) -> nn.Module:
    """Return the module whose forward pass trains the model. With several ranks, it averages the gradients."""
    if ranks.size == 1 or isinstance(model, FSDPModule):
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
    if isinstance(replica, FSDPModule):
        replica.set_requires_gradient_sync(not more)
    return replica.no_sync() if more and isinstance(replica, DistributedDataParallel) else nullcontext()
