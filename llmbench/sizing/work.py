"""The work of ops: FLOPs, bytes that must be moved, and memory held at the fullest moment, pass by pass.

Bytes are those between a chip and its memory with every input read once and every output written once; caches that do
better or worse are not counted. Folds over the op table, like every other figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

from llmbench.sizing.op import Op

__all__ = ["Pass", "Work", "least_s", "need_bytes", "work"]

Pass = Literal["forward", "backward", "both"]
"""What is done once: a forward pass, the backward pass of one that was done before, or one and then the other."""


class Work(NamedTuple):
    """FLOPs and bytes of one pass."""

    flops: int
    bytes: int


def work(ops: Iterable[Op], of: Pass) -> Work:
    """The work of all instances of these ops."""
    total = Work(0, 0)
    for op in ops:
        for each in _passes(op, of):
            total = Work(total.flops + op.count * each.flops, total.bytes + op.count * each.bytes)
    return total


def least_s(ops: Iterable[Op], of: Pass, bound: Callable[[int, int], float]) -> float:
    """Seconds that these ops need at least, one after the other; `bound(flops, bytes)` are those of one of them."""
    return sum(op.count * bound(*each) for op in ops for each in _passes(op, of))


def need_bytes(ops: list[Op], of: Pass, *, activation_bytes: int) -> int:
    """Memory that these ops need with their inputs, weights and results; `activation_bytes` of an element.

    Without backward: all weights, and the widest op. A standard attention holds its scores as logits and as an fp32
    softmax, and in 16-bit formats as that softmax rounded: 8 bytes a score whatever the format. With backward: weights
    and their gradients, all that is saved, and what the fullest backward holds beside.
    """
    weights = sum(op.count * op.weight_bytes for op in ops)
    if of == "forward":
        return weights + max((_widest(op, activation_bytes) for op in ops), default=0)
    saved = sum(op.count * op.saved_bytes for op in ops)
    return 2 * weights + saved + max((op.backward_bytes for op in ops), default=0)


def _widest(op: Op, activation_bytes: int) -> int:
    """What one op holds while its forward runs. The table counts four passes over the scores as traffic of a standard
    attention; held are 8 bytes each."""
    moved = op.read_bytes + op.written_bytes + op.kv_read_bytes
    scores = _scores(op, activation_bytes)
    return moved - 4 * activation_bytes * scores + 8 * scores


def _scores(op: Op, activation_bytes: int) -> int:
    """How many scores an attention keeps for backward: plain torch an fp32 softmax and, in 16-bit formats, its copy."""
    if op.kind != "attention" or not op.selective_bytes:
        return 0
    return op.selective_bytes // (4 if activation_bytes == 4 else 4 + activation_bytes)


def _passes(op: Op, of: Pass) -> tuple[Work, ...]:
    forward, backward = _forward(op), _backward(op)
    return {"forward": (forward,), "backward": (backward,), "both": (forward, backward)}[of]


def _forward(op: Op) -> Work:
    moved = op.weight_bytes + op.read_bytes + op.written_bytes + op.kv_read_bytes + op.kv_written_bytes
    return Work(op.forward_flops, moved)


def _backward(op: Op) -> Work:
    """Inputs, weights and the result's gradient are read, gradients of inputs and weights written; attention reads its
    result too. What saves nothing is linear in its inputs, which it then needs no more (rotations, sums)."""
    inputs, result = op.read_bytes, op.written_bytes
    moved = 2 * (inputs + op.weight_bytes) + result
    if op.kind == "attention":
        moved += result
    elif op.kind == "elementwise" and not op.saved_bytes:
        moved = inputs + result
    return Work(op.backward_flops + op.recompute_flops, moved)
