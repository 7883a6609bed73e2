"""The work of ops: FLOPs, bytes that must be moved, and memory held at the fullest moment, pass by pass.

Bytes are those between a chip and its memory with every input read once and every output written once; caches that do
better or worse are not counted. Folds over the op table, like every other figure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from llmbench.sizing.op import Op

__all__ = ["Pass", "Work", "least_s", "need_bytes", "work"]

Pass = Literal["forward", "backward", "both"]
"""What is done once: a forward pass, the backward pass of one that was done before, or one and then the other."""


class Work(NamedTuple):
    """FLOPs and bytes of one pass."""

    flops: int
    bytes: int


def work(ops: Sequence[Op], of: Pass, *, keeps: Collection[str] = ()) -> Work:
    """What no way to compute these ops does without, all their instances together.

    FLOPs are all of theirs. Bytes are those that enter and leave: weights, rows of tables, caches, what the first op
    reads and what the last writes. What one op writes and another reads may stay on the chip and is not counted, unless
    its result leaves too (`keeps` names such ops). A backward pass reads inputs and weights again and the gradients of
    results, and writes gradients of inputs and weights. A loss's result is a number.
    """
    flops = sum(op.count * each.flops for op in ops for each in _passes(op, of))
    if len(ops) == 1:
        return Work(flops, sum(ops[0].count * each.bytes for each in _passes(ops[0], of)))
    forward, backward = _together_bytes(ops, keeps)
    return Work(flops, {"forward": forward, "backward": backward, "both": forward + backward}[of])


def _together_bytes(ops: Sequence[Op], keeps: Collection[str]) -> tuple[int, int]:
    """Bytes of several ops as one, forward and backward."""
    first = next(op for op in ops if op.read_bytes)
    last = None if ops[-1].kind == "loss" else next(op for op in reversed(ops) if op.written_bytes)
    rows = sum(op.count * op.read_bytes for op in ops if op.kind == "embedding")
    weights = sum(op.count * op.weight_bytes for op in ops)
    cached = sum(op.count * (op.kv_read_bytes + op.kv_written_bytes) for op in ops)
    inputs = 0 if first.kind == "embedding" else first.read_bytes
    results = sum(op.written_bytes for op in ops if op is last or op.name in keeps)
    # A sum has one gradient for all that it adds up, and is itself all of them that backward reads.
    again = min(inputs, first.written_bytes) if _linear(first) else inputs
    return inputs + rows + weights + cached + results, 2 * (again + weights) + rows + results


def least_s(ops: Iterable[Op], of: Pass, bound: Callable[[int, int], float]) -> float:
    """Seconds that these ops need at least, one after the other; `bound(flops, bytes)` are those of one of them."""
    return sum(op.count * bound(*each) for op in ops for each in _passes(op, of))


def need_bytes(ops: list[Op], of: Pass, *, element_bytes: int) -> int:
    """Memory that these ops need with their inputs, weights and results; `element_bytes` of a weight or an activation.

    Without backward: all weights, and the fullest forward of an op with what is held beside it. With backward: weights;
    what is saved, from the end on less and less of it; their gradients, more and more of them; and what the op at work
    holds. Inputs stay with whoever calls, and so do results. The gradient of a result is not counted: it is the
    caller's own.
    """
    trained = sum(op.count * op.parameters for op in ops) + _lent_elements(ops)
    weights = element_bytes * (trained + sum(op.count * op.buffers for op in ops))
    if of == "forward":
        return weights + max(
            (beside + op.forward_bytes for op, beside in zip(ops, _beside(ops), strict=True)), default=0
        )
    backward = _backward_bytes(ops, element_bytes)
    return weights + (max(_saving_bytes(ops), backward) if of == "both" else backward)


def _lent_elements(ops: Iterable[Op]) -> int:
    """The matrix of a head that is its embedding's, where that is not among the ops and so has not counted it."""
    tied = [op for op in ops if op.tied]
    return 0 if any(op.kind == "embedding" for op in tied) else sum(op.matmul_elements for op in tied)


def _given_bytes(ops: Sequence[Op]) -> int:
    """Activations that the ops are given, or that a table makes of token numbers."""
    first = next((op for op in ops if op.read_bytes), None)
    if first is None:
        return 0
    if first.selective_bytes:  # of scores that are held it reads those too; saved beside them are q, k and v
        return min(first.read_bytes, first.saved_bytes - first.selective_bytes)
    return first.read_bytes


def _beside(ops: Sequence[Op]) -> list[int]:
    """What is held beside each op while a forward pass runs: the layer's input, the residual stream once a sublayer has
    been added to it, and what a norm made of it for the sublayer at work."""
    given, stream, inner = _given_bytes(ops), 0, 0
    found: list[int] = []
    for op in ops:
        norm = op.kind == "norm" and op.component == "norms" and ".post_" not in op.name
        found.append(0 if not found else given if norm else given + stream + inner)
        if norm:
            inner = op.written_bytes
        elif op.name.endswith("_residual"):
            inner, stream = 0, 0 if op.name.endswith("ffn_residual") else op.written_bytes
    return found


def _saving_bytes(ops: Sequence[Op]) -> int:
    """The fullest moment of a forward pass that saves for backward."""
    saved, fullest = _given_bytes(ops), 0
    for index, op in enumerate(ops):
        before = saved + (op.count - 1) * op.saved_bytes - (saved if index == 0 else 0)
        fullest = max(fullest, before + op.forward_bytes + op.copied_bytes)
        saved += op.count * op.saved_bytes
    return fullest


def _backward_bytes(ops: Sequence[Op], element_bytes: int) -> int:
    """The fullest moment of backward, beside weights. Layers of a kind are alike, and each moment in them grows or
    shrinks evenly from one to the next, so that the last and the first are looked at."""
    given, last = _given_bytes(ops), ops[-1]
    # What the first op saves as it was given is not there twice.
    own_input = min(given, ops[0].saved_bytes - ops[0].selective_bytes - ops[0].copied_bytes)
    result = 0 if last.kind in ("loss", "attention") else last.written_bytes  # attention's is saved, or hardly counts
    alive = given - own_input + sum(op.count * op.saved_bytes for op in ops) + result
    stream = max((op.written_bytes for op in ops if op.name.endswith("_residual")), default=0)
    gradients = fullest = 0
    for _, group in groupby(reversed(ops), key=lambda op: op.layers):
        layer = list(group)
        saved, made = sum(op.saved_bytes for op in layer), sum(_gradient(op) * element_bytes for op in layer)
        count = layer[0].count
        for done in {0, count - 1}:
            held = alive + gradients + done * (made - saved)
            for op in layer:
                held += _gradient(op) * element_bytes
                passing = op.backward_bytes - (op.written_bytes if op is last and not op.selective_bytes else 0)
                passing += stream if op.layers and not op.name.endswith("_residual") else 0
                fullest = max(fullest, held + passing)
                held -= op.saved_bytes
        alive -= count * saved
        gradients += count * made
    return fullest


def _gradient(op: Op) -> int:
    """Elements of the gradients of an op's weights; a tied head makes one of its embedding's."""
    return op.parameters + (op.matmul_elements if op.tied and op.kind != "embedding" else 0)


def _passes(op: Op, of: Pass) -> tuple[Work, ...]:
    forward, backward = _forward(op), _backward(op)
    return {"forward": (forward,), "backward": (backward,), "both": (forward, backward)}[of]


def _forward(op: Op) -> Work:
    moved = op.weight_bytes + op.read_bytes + op.written_bytes + op.kv_read_bytes + op.kv_written_bytes
    return Work(op.forward_flops, moved)


def _backward(op: Op) -> Work:
    """Inputs, weights and the result's gradient are read, gradients of inputs and weights written; attention reads its
    result too. What is linear in its inputs needs them no more."""
    inputs, result = op.read_bytes, op.written_bytes
    moved = 2 * (inputs + op.weight_bytes) + result
    if op.kind == "attention":
        moved += result
    elif _linear(op):
        moved = inputs + result
    return Work(op.backward_flops + op.recompute_flops, moved)


def _linear(op: Op) -> bool:
    """Whether it saves nothing because its gradient does not depend on its inputs: rotations, copies, sums."""
    return op.kind == "elementwise" and not op.saved_bytes
