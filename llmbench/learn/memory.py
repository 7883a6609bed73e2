"""The memory of a training or an evaluation, which is refused before it starts if the free memory is too small."""

from __future__ import annotations

import torch

from llmbench.errors import CannotRunError
from llmbench.learn.settings import Settings
from llmbench.measure.ranks import ALONE, Ranks
from llmbench.model.decoder import Decoder
from llmbench.model.devices import free_bytes
from llmbench.model.formats import DTYPES
from llmbench.sizing.lower import lower
from llmbench.sizing.training import training_memory
from llmbench.sizing.work import need_bytes
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.model import ModelSpec

__all__ = ["loss_bytes", "refuse_loss_without_memory", "refuse_without_memory", "step_bytes"]

BATCH_BYTES = 2 * 8
"""The bytes of a token of the batch and of its target. All micro-batches and ranks have the whole batch."""
GIB = 2**30


def step_bytes(spec: ModelSpec, settings: Settings, ranks: int = 1) -> int:
    """Return the peak memory of a training step of one rank, without the workspaces of CUDA's libraries.

    The allocator and the temporary tensors of the kernels of a CPU are not counted. With them, the process grew by 1.2
    to 2.1 times as much for small models, and by 2.7 times as much with dropout, for which torch keeps the scores.
    """
    memory = training_memory(
        spec,
        settings.seq_len,
        micro_batch=settings.batch // (settings.accumulate * ranks),
        micro_batches=settings.accumulate,
        layout=Layout(dp=ranks, zero=3 if settings.sharding == "fsdp" and ranks > 1 else 0),
        precision="mixed" if settings.precision == "bf16" else "fp32",
        optimizer="adamw" if settings.optimizer == "adamw" else "sgd-momentum" if settings.beta1 else "sgd",
        kernels="eager",
        dropout=settings.dropout > 0,
    )
    return memory.peak_bytes - memory.parts_bytes["overhead"]


def refuse_without_memory(spec: ModelSpec, settings: Settings, device: torch.device, ranks: Ranks = ALONE) -> None:
    """Raise CannotRunError if the ranks of this machine need more than the free memory of the device.

    Linux gives a process more memory than is free, and kills the process when it uses the memory.
    """
    needed = step_bytes(spec, settings, ranks.size) + BATCH_BYTES * settings.tokens
    needed *= ranks.processes if device.type == "cpu" else 1
    hint = "try a smaller model, a smaller --batch or --seq, or accumulate=N in --setting of `train`"
    _refuse("the training", needed, device, hint)


def loss_bytes(model: Decoder, window: int) -> int:
    """Return the peak memory of the losses of one window, without the weights, which exist already.

    The logits, their fp32 copy and its softmax count too. The allocator is not counted, as in `step_bytes`.
    """
    weight, traits = model.embedding.weight, model.implementation.traits
    dtype = {dtype: name for name, dtype in DTYPES.items()}.get(weight.dtype, "fp32")
    options = traits.computed("train") | traits.temporaries(model.spec, weight.device) | {"loss": "plain"}
    work = Workload.train(window, weight_dtype=dtype, activation_dtype=dtype, **options)
    return need_bytes(lower(model.spec, work), "forward", element_bytes=0)


def refuse_loss_without_memory(model: Decoder, window: int) -> None:
    """Raise CannotRunError if the losses of one window need more than the free memory of the device."""
    hint = "use a smaller --seq"
    _refuse(f"a window of {window:,} tokens", loss_bytes(model, window), model.embedding.weight.device, hint)


def _refuse(what: str, needed: int, device: torch.device, hint: str) -> None:
    """Raise CannotRunError if `what` needs more bytes than the device has free."""
    free = free_bytes(device)
    if free is not None and needed > free:
        raise CannotRunError(
            f"too little memory: {what} needs at least {needed / GIB:,.1f} GiB, and the {device.type} has "
            f"{free / GIB:,.1f} GiB free",
            hint=hint,
        )
