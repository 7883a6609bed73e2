"""The walk through the backward pass of one micro-batch: the bytes that are allocated while each op runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import msgspec

from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.op import Op
from llmbench.sizing.recompute import discarded
from llmbench.sizing.stages import Chunk
from llmbench.sizing.training_run import Place, TrainingRun


class Moment(msgspec.Struct, frozen=True):
    """The bytes that are allocated while one op of the backward pass runs, in addition to those of the whole step.

    activations: bytes of saved activations and of temporaries. logits: bytes of the logits and their gradients.
    gradients: bytes of weight gradients. op: name of the running op.
    temporary: bytes among activations or logits that only the running op needs.
    update: bytes of temporaries of the optimizer step.
    place: where the op is in its chunk. layer: index of its layer in the chunk.
    """

    activations: int
    logits: int
    gradients: int
    op: str
    temporary: int = 0
    update: int = 0
    place: Place = "layer"
    layer: int = 0

    @property
    def bytes(self) -> int:
        """The sum of the bytes of activations, logits, gradients and temporaries of the optimizer step."""
        return self.activations + self.logits + self.gradients + self.update


def saved_below(run: TrainingRun, chunk: Chunk) -> list[int]:
    """Return, for each layer and for the end of a chunk, the bytes that earlier layers have saved on this GPU.

    If activations are offloaded, the activations of one layer are on the GPU: they are on their way to the host, or
    back from it.
    """
    sizes = run.checkpoints(chunk)
    return [0, *sizes] if run.offloads("activations") else [0, *accumulate(sizes)]


def backward_moments(run: TrainingRun, chunk: Chunk) -> list[Moment]:
    """Return the moments of the backward pass of one micro-batch through a chunk, from the last op to the first.

    A layer has one moment: the moment of its backward pass with the most bytes.
    """
    moments: list[Moment] = []
    below = saved_below(run, chunk)
    first = sum(op.saved_bytes for op in chunk.before)
    gradients = walk(run, chunk.after, first + below[-1], 0, moments, "after")
    cache: dict[int, tuple[Moment, int]] = {}
    for index in range(len(chunk.layers) - 1, -1, -1):
        layer = chunk.layers[index]
        if not layer:  # it has neither a mixer nor a feed-forward
            continue
        if id(layer) not in cache:
            own: list[Moment] = []
            added = walk(run, layer, 0, 0, own, "layer")
            cache[id(layer)] = max(own, key=lambda moment: moment.bytes), added
        best, added = cache[id(layer)]
        moments.append(
            Moment(
                activations=best.activations + first + below[index],
                logits=best.logits,
                gradients=best.gradients + gradients,
                op=best.op,
                temporary=best.temporary,
                layer=index,
            )
        )
        gradients += added
    walk(run, chunk.before, 0, gradients, moments, "before")
    return moments


def walk(
    run: TrainingRun,
    ops: Sequence[Op],
    saved_before: int,
    gradients: int,
    moments: list[Moment],
    place: Literal["after", "layer", "before"],
) -> int:
    """Append a moment for the backward pass of each op. Return the bytes of gradients after the last moment.

    saved_before: bytes that earlier ops have saved. gradients: bytes of gradients before the first moment.
    place: where the ops are in their chunk.
    """
    parts = discarded(ops, run.modules)
    saved = [op.saved_bytes - part.size for op, part in zip(ops, parts, strict=True)]
    # The backward pass first computes a whole part again, and then frees its activations op by op.
    sums: dict[str, int] = {}
    computed: list[int] = []
    for name, size, copied in parts:
        sums[name] = sums.get(name, 0) + size + copied
        computed.append(sums[name])
    alive = saved_before + sum(saved)
    logits = sum(size for op, size in zip(ops, saved, strict=True) if op.kind == "loss")
    whole = 0  # bytes of gradients that FSDP or ZeRO has not yet split over the data-parallel group
    after = gradients
    stream = run.stream() if place == "layer" else 0
    mask = run.loader_mask_bytes if logits else 0
    updates, persistent, in_place = run.recipe.step == "backward", run.persistent, run.in_place
    for op, size, again in zip(reversed(ops), reversed(saved), reversed(computed), strict=True):
        is_logits, waits = op.kind == "loss", run.waits(op)
        passing = op.backward_bytes + again + (0 if op.name.endswith("residual") else stream)
        held = 0
        if is_logits:  # the forward pass of a loss can need more than its backward pass
            forward = op.forward_bytes - op.saved_bytes
            if forward + mask > passing:
                passing, held = forward, mask
        new = 0 if waits else _weight_gradient(run, op, in_place)
        moments.append(
            Moment(
                activations=alive - logits + (held if is_logits else passing),
                logits=logits + (passing if is_logits else 0),
                gradients=gradients + whole + new,
                op=op.name,
                temporary=passing,
                place="loss" if is_logits else place,
            )
        )
        alive -= size
        logits -= size if is_logits else 0
        if waits:
            whole += op.saved_bytes + op.written_bytes
            after += op.saved_bytes + op.written_bytes
        if updates:
            # Only the gradient of a tied matrix waits, because the embedding adds to it.
            tied = bytes_of(op.matmul_elements, run.formats.weights) if op.tied and op.kind == "matmul" else 0
            whole += tied
            after += tied
        elif not persistent:
            whole += new
            after += 0 if run.offloads("weights") else run.stored_bytes(op, 2, new * run.widening)
        elif run.layout.zero >= 2:
            whole += new
    return after


def _weight_gradient(run: TrainingRun, op: Op, in_place: bool) -> int:
    """Return the bytes of an op's weight gradient.

    A tied matrix has two gradients, one from the embedding and one from the head, until autograd adds them.

    in_place: see `TrainingRun.in_place`.
    """
    if op.frozen:
        return 0
    elements = op.parameters
    if in_place and op.matrix is not None and op.kind == "matmul" and op.layer:
        return 0
    if op.tied:
        elements = 2 * elements if op.kind == "embedding" else elements + op.matmul_elements
    return bytes_of(elements, run.formats.weights)
