"""The peak of a training step: the moment with the most bytes on one GPU of a pipeline stage."""

from __future__ import annotations

from operator import add
from typing import NamedTuple

from llmbench.sizing.backward import Moment, backward_moments
from llmbench.sizing.memory import Memory
from llmbench.sizing.stages import Stage
from llmbench.sizing.training_run import Resident, TrainingRun


class Peak(NamedTuple):
    """The moment of a stage with the most bytes.

    chunk: index of its chunk in the stage. apart: largest bytes of a moment without the weights that FSDP has gathered.
    """

    moment: Moment
    chunk: int
    apart: int


def stage_peak(run: TrainingRun, stage: Stage) -> Memory:
    """Return the peak memory of one stage. The pipeline schedule gives the number of micro-batches in flight."""
    counts, w = stage.counts, run.workload
    # The allocator cannot reuse the block of the bf16 logits for the larger fp32 tensors of PyTorch's loss.
    copies = w.kernels == "eager" and w.loss == "plain"
    free = sum(op.read_bytes for op, _ in counts if op.kind == "loss") if copies else 0
    resident = run.resident(stage)
    top, place, apart = largest_moment(run, stage, resident)
    others = 0 if top.place == "optimizer" else resident.others[place]
    gathered = resident.gathered[top.place]
    # FSDP gathers on a stream of its own, and free blocks of one stream serve no other stream.
    free += apart - top.bytes - others + max(resident.gathered.values()) - gathered
    parts = {
        "weights": resident.weights + gathered,
        "gradients": top.gradients + resident.placeholders + (resident.gradients if run.persistent else 0),
        "optimizer": resident.states + top.update,
        "activations": top.activations + others,
        "logits": top.logits,
        "kv_cache": 0,
        "overhead": run.workspace_bytes,
    }
    return Memory(
        phase="train",
        seq_len=run.workload.query_len,
        micro_batch=run.workload.batch,
        layout=run.layout,
        peak_bytes=sum(parts.values()),
        parts_bytes=parts,
        full_bytes={
            "weights": resident.weights,
            "gradients": resident.gradients,
            "optimizer": resident.states,
            "activations": max(map(add, resident.others, map(run.saved, stage.chunks))),
        },
        moment=top.op,
        stage=stage.index,
        stage_peaks=(),
        parameters=sum(op.parameters * count for op, count in counts),
        reserved_bytes=sum(parts.values()) + free,
        steady_bytes=resident.weights
        + resident.states
        + (resident.gradients if run.persistent else 0)
        + run.gradient_copies(stage)
        + resident.inputs
        + run.workspace_bytes,
        host_bytes=resident.host,
    )


def largest_moment(run: TrainingRun, stage: Stage, resident: Resident) -> Peak:
    """Return the moment of a stage with the most bytes."""
    last = optimizer_moment(run, resident)
    best, place, most, apart = last, 0, -1, last.bytes
    gathered = resident.gathered
    for index, (chunk, others) in enumerate(zip(stage.chunks, resident.others, strict=True)):
        for moment in backward_moments(run, chunk):
            size = moment.bytes + others
            apart = max(apart, size)
            size += gathered[moment.place]
            if size > most:
                best, place, most = moment, index, size
    return Peak(last if last.bytes > most else best, place, apart)


def optimizer_moment(run: TrainingRun, resident: Resident) -> Moment:
    """Return the moment of the optimizer step. Its gradients are those that do not exist during the whole step."""
    gradients = 0 if run.persistent or run.recipe.step == "backward" else resident.gradients
    return Moment(
        activations=resident.inputs,
        logits=0,
        gradients=gradients,
        op="optimizer",
        update=resident.update,
        place="optimizer",
    )
