"""Compare the peak memory that torchtune prints with the predicted memory of a training step."""

from __future__ import annotations

from llmbench.sizing.recipe import Optimizer
from llmbench.sizing.training import training_memory
from llmbench.validation.comparison import Answer, Figure, printed
from llmbench.validation.models import bundled_model
from llmbench.validation.rows import RefusedError, Row

__all__ = ["answer"]

_LOSSES = ("", "torch.nn.CrossEntropyLoss")
_OPTIMIZERS: dict[str, Optimizer] = {"torch.optim.AdamW": "adamw"}


def answer(row: Row) -> Answer:
    """Compare the peak of one run. Raises RefusedError for an option that llmbench does not compute."""
    for column in ("optimizer_in_bwd", "activation_offloading", "fsdp_cpu_offload"):
        if row.flag(column):
            raise RefusedError(f"column `{column}`: llmbench does not compute its memory")
    method = row.text("method").partition(" ")[0]
    if method != "full":
        raise RefusedError(f"column `method`: llmbench does not compute the memory of {row.text('method')[:40]!r}")
    if row.text("loss") not in _LOSSES:
        raise RefusedError(f"column `loss`: llmbench does not compute the memory of {row.text('loss')[:60]!r}")
    if row.flag("packed") is not True:
        raise RefusedError(
            "column `packed` is not True: the lengths of the sequences vary, and the row does not give them"
        )
    if row.size("num_gpus") != 1:
        raise RefusedError("column `num_gpus`: llmbench does not know how the run divides the model over its GPUs")
    memory = training_memory(
        bundled_model(row.text("model")),
        row.size("max_seq_len"),
        micro_batch=row.size("micro_batch"),
        micro_batches=row.count("grad_accumulation"),
        precision=row.choice("dtype", {"bf16": "bf16", "fp32": "fp32"}),
        optimizer=row.choice("optimizer", _OPTIMIZERS),
        recompute="full" if row.flag("activation_checkpointing") else "none",
        kernels="fused" if row.flag("compile") else "eager",
    )
    measured, tolerance = printed(row.text("peak_gib"), 2**30)
    figure = Figure(quantity="peak_bytes", measured=measured, ours=memory.peak_bytes, tolerance=tolerance)
    return Answer(figures=(figure,), parts=dict(memory.parts_bytes))
