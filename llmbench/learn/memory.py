"""Refuse a training that cannot fit into the free memory, before the memory is allocated."""

from __future__ import annotations

import torch

from llmbench.errors import CannotRunError
from llmbench.learn.settings import Settings
from llmbench.measure.ranks import ALONE, Ranks
from llmbench.model.devices import free_bytes
from llmbench.sizing.params import count_parameters
from llmbench.spec.model import ModelSpec

__all__ = ["least_bytes", "refuse_without_memory"]

FP32 = 4
"""The bytes of a weight, a gradient, a state of the optimizer, and an element of the residual stream."""
INT64 = 8
GIB = 2**30


def least_bytes(spec: ModelSpec, settings: Settings, ranks: int) -> int:
    """Return bytes that each of the ranks needs at the same time, and usually several times as many.

    They are the weights with their gradients and optimizer states, the tokens and targets of the whole batch, and the
    input of each layer for one micro-batch, which the backward pass reads.
    """
    states = 2 if settings.optimizer == "adamw" else int(settings.beta1 > 0)
    weights = FP32 * (2 + states) * count_parameters(spec).total // (ranks if settings.sharding == "fsdp" else 1)
    tokens = settings.batch * settings.seq_len
    inputs = FP32 * spec.hidden_size * spec.num_hidden_layers * (tokens // (settings.accumulate * ranks))
    return weights + 2 * INT64 * tokens + inputs


def refuse_without_memory(spec: ModelSpec, settings: Settings, device: torch.device, ranks: Ranks = ALONE) -> None:
    """Raise CannotRunError if the ranks of this machine need more than the free memory of the device.

    Linux gives a process more memory than is free, and kills the process when it uses the memory.
    """
    free, needed = free_bytes(device), least_bytes(spec, settings, ranks.size)
    needed *= ranks.processes if device.type == "cpu" else 1
    if free is not None and needed > free:
        raise CannotRunError(
            f"too little memory: the training needs at least {needed / GIB:,.1f} GiB, and the {device.type} has "
            f"{free / GIB:,.1f} GiB free",
            hint="try a smaller model, a smaller --batch or --seq, or --setting accumulate=N",
        )
