"""The timeline of a training step: the bytes that are allocated during the forward pass, the backward pass and the
optimizer step of the pipeline stage with the highest peak.

The rows of the backward pass are the moments from which the peak is computed (see `backward.py`), so the largest
row equals the peak. The rows of the forward pass give the activations that are saved after each layer. Temporaries are
computed only for the backward pass, because the peak is there or in the optimizer step.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from llmbench.sizing.backward import backward_moments, saved_below
from llmbench.sizing.memory import Memory
from llmbench.sizing.peak import largest_moment, optimizer_moment
from llmbench.sizing.stages import Chunk
from llmbench.sizing.training_run import Resident, TrainingRun


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the timeline.

    part: the part of the training step. op: the running op, with the index of its layer. kind: kind of the layer, or an
        empty text outside the layers. layer: index of the layer, or None outside the layers.
    resident_bytes: bytes that are allocated before and after the op: weights, states, gradients, saved activations.
    temporary_bytes: bytes that exist only while the op runs. None: unknown.
    """

    part: Literal["forward", "backward", "optimizer"]
    op: str
    kind: str = ""
    layer: int | None = None
    resident_bytes: int
    temporary_bytes: int | None = None

    @property
    def total_bytes(self) -> int:
        """The sum of resident and temporary bytes."""
        return self.resident_bytes + (self.temporary_bytes or 0)


def timeline(run: TrainingRun, memory: Memory) -> list[Step]:
    """Return the rows of one training step, in the order of time. `memory`: the memory of the same run.

    With pipeline stages, the rows follow the micro-batch whose backward pass has the peak. The activations of the other
    micro-batches in flight are resident until the optimizer step. With interleaving, the rows follow one chunk.
    """
    stage = run.stages[memory.stage]
    resident = run.resident(stage)
    place = largest_moment(run, stage, resident).chunk
    chunk, others = stage.chunks[place], resident.others[place]
    last = optimizer_moment(run, resident)
    return [
        *_forward(run, chunk, resident, others),
        *_backward(run, chunk, resident, others),
        Step(
            part="optimizer",
            op=last.op,
            resident_bytes=_constant(run, resident) + resident.gathered["optimizer"] + last.bytes,
            temporary_bytes=0,
        ),
    ]


def _constant(run: TrainingRun, resident: Resident) -> int:
    """Return the bytes that are allocated during the whole step."""
    gradients = resident.placeholders + (resident.gradients if run.persistent else 0)
    return resident.weights + resident.states + gradients + run.workspace_bytes


def _forward(run: TrainingRun, chunk: Chunk, resident: Resident, others: int) -> list[Step]:
    allocated = _constant(run, resident) + others
    gathered = resident.gathered
    steps: list[Step] = []
    for op in chunk.before:
        allocated += op.saved_bytes
        steps.append(Step(part="forward", op=op.name, resident_bytes=allocated + gathered["before"]))
    below = saved_below(run, chunk)
    for index, layer in enumerate(chunk.layers):
        name, number = layer_place(run, chunk, index)
        total = allocated + below[index + 1] + gathered["layer"]
        steps.append(Step(part="forward", op=name, kind=layer[0].layer, layer=number, resident_bytes=total))
    allocated += below[-1]
    for op in chunk.after:
        allocated += op.saved_bytes
        steps.append(Step(part="forward", op=op.name, resident_bytes=allocated + gathered["loss"]))
    return steps


def _backward(run: TrainingRun, chunk: Chunk, resident: Resident, others: int) -> list[Step]:
    allocated = _constant(run, resident) + others
    steps = []
    for moment in backward_moments(run, chunk):
        kind, number, op = "", None, moment.op
        if moment.place == "layer":
            _, number = layer_place(run, chunk, moment.layer)
            kind, op = chunk.layers[moment.layer][0].layer, moment.op.replace("{}", str(number))
        steps.append(
            Step(
                part="backward",
                op=op,
                kind=kind,
                layer=number,
                resident_bytes=allocated + resident.gathered[moment.place] + moment.bytes - moment.temporary,
                temporary_bytes=moment.temporary,
            )
        )
    return steps


def layer_place(run: TrainingRun, chunk: Chunk, index: int) -> tuple[str, int]:
    """Return the name and the index of a layer in its stack, such as `layers.31` and 31."""
    first = chunk.layers[index][0]
    number = chunk.first_layer + index
    if first.stack == "mtp":
        number = index - next(i for i, layer in enumerate(chunk.layers) if layer and layer[0].stack == "mtp")
    if run.spec.encoder is not None and first.stack == "decoder":
        number -= len(run.spec.encoder.order)
    return first.name.partition(".{}.")[0] + f".{number}", number
