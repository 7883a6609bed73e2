"""The work of ops: FLOPs, bytes that must be moved, and memory held at the fullest moment, pass by pass.

Bytes are those between a chip and its memory with every input read once and every output written once; caches that do
better or worse are not counted. Folds over the op table, like every other figure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
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

    Without backward: all weights, and the widest op. A standard attention holds its scores as logits and as an fp32
    softmax, and in 16-bit formats as that softmax rounded: 8 bytes a score whatever the format. With backward: weights
    and their gradients, all that is saved, and what the fullest backward holds beside.
    """
    trained = sum(op.count * op.parameters for op in ops) + _lent_elements(ops)
    weights = element_bytes * (trained + sum(op.count * op.buffers for op in ops))
    if of == "forward":
        return weights + max((_widest(op, element_bytes) for op in ops), default=0)
    saved = sum(op.count * op.saved_bytes for op in ops)
    return weights + element_bytes * trained + saved + max((op.backward_bytes for op in ops), default=0)


def _lent_elements(ops: Iterable[Op]) -> int:
    """The matrix of a head that is its embedding's, where that is not among the ops and so has not counted it."""
    tied = [op for op in ops if op.tied]
    return 0 if any(op.kind == "embedding" for op in tied) else sum(op.matmul_elements for op in tied)


def _widest(op: Op, element_bytes: int) -> int:
    """What one op holds while its forward runs. The table counts four passes over the scores as traffic of a standard
    attention; held are 8 bytes each."""
    moved = op.read_bytes + op.written_bytes + op.kv_read_bytes
    scores = _scores(op, element_bytes)
    return moved - 4 * element_bytes * scores + 8 * scores


def _scores(op: Op, element_bytes: int) -> int:
    """How many scores an attention keeps for backward: plain torch an fp32 softmax and, in 16-bit formats, its copy."""
    if op.kind != "attention" or not op.selective_bytes:
        return 0
    return op.selective_bytes // (4 if element_bytes == 4 else 4 + element_bytes)


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
