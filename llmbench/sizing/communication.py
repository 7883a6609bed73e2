"""The communication of one training step: the collectives of the ops, of the gradients, of FSDP and of the pipeline.

Sources: PyTorch's DistributedDataParallel and fully_shard, Megatron's distributed optimizer and its 1F1B schedule.

Not counted: what recomputation repeats, norms of gradients, the gradients of norms under sequence parallelism, and the
output of an encoder that its last stage sends to the stages of the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.op import Collective
from llmbench.sizing.stages import Stage
from llmbench.sizing.training_run import TrainingRun

__all__ = ["Communication", "step_communication"]

Group = Literal["tp", "cp", "ep", "etp", "dp", "expert_dp", "fsdp", "pp"]
When = Literal["forward", "backward", "step"]
Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]


class Communication(msgspec.Struct, frozen=True, kw_only=True):
    """The collectives of one kind that one GPU takes part in during a training step.

    kind: as in `Collective`. `send`: one GPU sends to the next or to the previous pipeline stage.
    group: the GPUs that communicate. dp: the GPUs with the same part of a weight outside the experts. expert_dp: those
        with the same part of an expert. fsdp: the first ones, if each stores only a shard of the weights. pp: the same
        GPU of the pipeline stages. Others: as in `Collective`.
    when: the pass in which the communication occurs. step: once, between the last backward pass and the next step.
    calls: number of calls. None: the sizes of the buckets of gradients decide it.
    bytes: bytes of the whole tensors of all calls together (see `Collective.bytes`).
    """

    kind: Kind
    group: Group
    when: When
    calls: int | None
    bytes: int


def step_communication(run: TrainingRun, stage: Stage) -> list[Communication]:
    """Return the communication of one GPU of a pipeline stage in one optimizer step of `run.passes` micro-batches."""
    sums: dict[tuple[str, str, str], Communication] = {}
    for each in (*_of_ops(run, stage), *_of_weights(run, stage), *_of_pipeline(run, stage)):
        key = (each.kind, each.group, each.when)
        before = sums.get(key)
        if before is not None:
            calls = None if before.calls is None or each.calls is None else before.calls + each.calls
            sums[key] = msgspec.structs.replace(each, calls=calls, bytes=before.bytes + each.bytes)
        else:
            sums[key] = each
    return [each for each in sums.values() if each.bytes]


def _of_ops(run: TrainingRun, stage: Stage) -> Iterator[Communication]:
    """Yield the collectives of the ops, which each micro-batch repeats."""
    for op, count in stage.counts:
        for each in op.collectives:
            yield _communication(each, run.passes * count)


def _communication(each: Collective, calls: int) -> Communication:
    return Communication(kind=each.kind, group=each.group, when=each.when, calls=calls, bytes=calls * each.bytes)


def _of_weights(run: TrainingRun, stage: Stage) -> Iterator[Communication]:
    """Yield the collectives of gradients and weights.

    - zero=0: the gradients are summed once per step.
    - zero=1, zero=2: the gradients are summed and split once per step, and then the updated weights are gathered.
    - zero=3 (FSDP): each micro-batch gathers the weights of every layer in both passes, and sums and splits the
      gradients. The weights outside the layers stay gathered until the backward pass, unless they are units of their
      own. With pipeline stages, PyTorch's schedules gather all weights once, and reduce the gradients once.
    - instances: the shards of the gradients are also summed over the groups.
    """
    layout = run.layout
    for op, count in stage.counts:
        copies = run.copies(op)
        if not op.parameters or copies * layout.instances == 1:
            continue
        gradients = count * bytes_of(op.trained, run.gradient_dtype)
        weights = count * sum(tensors.bytes for tensors in run.sent_weights(op))
        moved: list[tuple[Kind, When, int]]
        if layout.zero == 0:
            moved = [("all_reduce", "step", gradients)]
        elif layout.zero < 3 or run.gathers_stage:
            gathered = weights if op.trained or layout.zero == 3 else 0
            moved = [("reduce_scatter", "step", gradients), ("all_gather", "step", gathered)]
        else:
            again = weights if op.layer or run.recipe.table_units else 0
            moved = [("all_gather", "forward", run.passes * weights), ("all_gather", "backward", run.passes * again)]
            moved.append(("reduce_scatter", "backward", run.passes * gradients))
        if layout.instances > 1:
            _, when, size = moved[-1] if layout.zero == 3 and not run.gathers_stage else moved[0]
            moved.append(("all_reduce", when, -(-size // copies)))
        group: Group = "expert_dp" if op.component == "experts" else "fsdp" if layout.zero == 3 else "dp"
        for kind, when, size in moved:
            yield Communication(kind=kind, group=group, when=when, calls=None, bytes=size)


def _of_pipeline(run: TrainingRun, stage: Stage) -> Iterator[Communication]:
    """Yield what a pipeline stage sends: the hidden states of each chunk, and in the backward pass their gradients.

    The first and the last stage sum the gradients of a tied table, of which each has a copy.
    """
    layout, stream = run.layout, run.stream()
    if layout.pp == 1:
        return
    chunks = layout.pp * layout.interleave
    places = [stage.index + layout.pp * index for index in range(len(stage.chunks))]
    sending: dict[When, int] = {
        "forward": sum(place < chunks - 1 for place in places),
        "backward": sum(place > 0 for place in places),
    }
    for when, count in sending.items():
        calls = run.passes * count
        yield Communication(kind="send", group="pp", when=when, calls=calls, bytes=calls * stream)
    if run.spec.tie_word_embeddings:
        for op, _ in stage.counts:
            if op.stack == "decoder" and op.name in ("embedding", "lm_head") and op.trained:
                size = bytes_of(op.trained, run.gradient_dtype)
                yield Communication(kind="all_reduce", group="pp", when="step", calls=1, bytes=size)
