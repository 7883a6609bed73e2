"""FSDP2: each rank stores a part of every weight, gradient and optimizer state, and gathers one block at a time."""

from __future__ import annotations

import warnings

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from llmbench.model.decoder import Decoder

__all__ = ["split_weights"]


def split_weights(model: Decoder, mesh: DeviceMesh) -> None:
    """Divide the weights among the ranks of a mesh, in place. Each block is gathered alone, the rest with the model."""
    # The blocks return views. torch warns of operations that change these in place, and the model has none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for module in (*model.layers, model):
        fully_shard(module, mesh=mesh)
