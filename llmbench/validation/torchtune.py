"""Compare the peak memory that torchtune prints with the predicted memory of a training step.

What torchtune does in every run: weights, gradients and optimizer states have the format of the column `dtype`; the
attention is PyTorch's flash attention; activation checkpointing computes whole layers again; several GPUs run FSDP with
sharded weights; bitsandbytes' paged optimizers allocate their states in memory that PyTorch does not count.
"""

from __future__ import annotations

from typing import Literal

from llmbench.sizing.adapters import Adapters
from llmbench.sizing.recipe import Offload, Optimizer, Recipe, UpdateStep
from llmbench.sizing.training import run_memory, training_run
from llmbench.sizing.workload import Layout, Loss
from llmbench.validation.comparison import Answer, Figure, printed
from llmbench.validation.models import bundled_model
from llmbench.validation.rows import RefusedError, Row

__all__ = ["answer"]

_LOSSES: dict[str, Loss] = {
    "": "plain",
    "torch.nn.CrossEntropyLoss": "plain",
    "torchtune.modules.loss.CEWithChunkedOutputLoss": "chunked",
    "torchtune.modules.loss.LinearCrossEntropyLoss": "linear",
}
_OPTIMIZERS: dict[str, Optimizer] = {
    "torch.optim.AdamW": "adamw",
    "torchao.optim.AdamW8bit": "adamw-8bit",
    "bitsandbytes.optim.AdamW8bit": "adamw-8bit",
    "bitsandbytes.optim.PagedAdamW8bit": "adamw-8bit",
    "bitsandbytes.optim.PagedAdamW": "adamw",
    "torch.optim.SGD": "sgd",
    "adamw": "adamw",
    "adamw-8bit": "adamw-8bit",
    "sgd": "sgd",
}
_FUSED_SINCE = "2024-09"
"""The recipes in torchtune's recipes/configs set `fused: True` for torch.optim.AdamW since September 2024. Before, the
step was torch's default on a GPU, foreach."""

_METHODS: dict[str, Literal["full", "lora", "qlora"]] = {"full": "full", "lora": "lora", "qlora": "qlora"}


def answer(row: Row) -> Answer:
    """Compare the peak of one run. Raises RefusedError for an option that llmbench does not compute."""
    if row.flag("packed") is not True:
        raise RefusedError(
            "column `packed` is not True: the lengths of the sequences vary, and the row does not give them"
        )
    if row.flag("activation_checkpointing") and row.text("ac_mode") not in ("", "full"):
        raise RefusedError(f"column `ac_mode`: llmbench does not compute {row.text('ac_mode')[:40]!r}")
    method = _METHODS.get(row.text("method").split(" ")[0].lower())
    if method is None:
        raise RefusedError(f"column `method`: llmbench knows full, lora and qlora, not {row.text('method')[:40]!r}")
    gpus, loss = row.size("num_gpus"), row.choice("loss", _LOSSES)
    run = training_run(
        bundled_model(row.text("model")),
        row.size("max_seq_len"),
        micro_batch=row.size("micro_batch"),
        micro_batches=row.size("grad_accumulation", 1),
        layout=Layout(dp=gpus, zero=3) if gpus > 1 else Layout(),
        precision=row.choice("dtype", {"bf16": "bf16", "fp32": "fp32"}),
        optimizer=row.choice("optimizer", _OPTIMIZERS),
        recompute="full" if row.flag("activation_checkpointing") else "none",
        kernels="fused" if row.flag("compile") and loss != "plain" else "eager",
        loss=loss,
        recipe=Recipe(
            step=_step(row),
            offload=_offloaded(row),
            table_units=gpus > 1 and "output" in row.text("custom_sharded_layers"),
        ),
        adapters=None if method == "full" else _adapters(row),
        base="nf4" if method == "qlora" or row.flag("quantize_base") else None,
    )
    memory = run_memory(run)
    measured, tolerance = printed(row.text("peak_gib"), 2**30)
    figure = Figure(quantity="peak_bytes", measured=measured, ours=memory.peak_bytes, tolerance=tolerance)
    note = row.text("note")
    return Answer(
        figures=(figure,),
        doubt=note if "inferred" in note or "does not say" in note else "",
        parts=dict(memory.parts_bytes),
    )


def _step(row: Row) -> UpdateStep:
    if row.flag("optimizer_in_bwd"):
        return "backward"
    if row.text("optimizer").startswith("bitsandbytes"):
        return "fused"
    return "fused" if row.text("date") >= _FUSED_SINCE else "foreach"


def _offloaded(row: Row) -> tuple[Offload, ...]:
    parts: list[Offload] = []
    if "Paged" in row.text("optimizer"):
        parts.append("states")
    if row.flag("fsdp_cpu_offload"):
        parts.append("weights")
    if row.flag("activation_offloading"):
        parts.append("activations")
    return tuple(parts)


def _adapters(row: Row) -> Adapters:
    targets = ",".join(row.text("lora_targets").split())
    if not targets:
        raise RefusedError("column `lora_targets` is empty, and the adapters depend on it")
    dropout = row.number("lora_dropout") or 0
    return Adapters.parse(f"r={row.size('lora_rank')},targets={targets},dropout={dropout:g}")
