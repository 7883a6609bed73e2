"""FLOPs, bytes moved and peak memory of ops, for a forward or a backward pass.

Bytes moved are bytes between a chip and its memory, if every input is read once and every output is written once. A
real cache can save some of this traffic or cause more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from llmbench.sizing.op import Op

__all__ = ["Pass", "Work", "least_s", "need_bytes", "work"]

Pass = Literal["forward", "backward", "both"]
"""A forward pass alone, a backward pass alone, or a forward and then a backward pass."""


class Work(NamedTuple):
    """FLOPs and bytes moved in one pass."""

    flops: int
    bytes: int


def work(ops: Sequence[Op], direction: Pass, *, keeps: Collection[str] = ()) -> Work:
    """The least work of one pass through these ops, with all their instances.

    The FLOPs are the sum over the ops. The bytes are weights, rows of tables, caches, the first op's input and the last
    op's output. A result that only another op reads may stay on the chip, so it is not counted unless `keeps` names the
    op that writes it. A backward pass reads inputs, weights and the gradients of results, and writes the gradients of
    inputs and weights. The result of a loss is one number, whose bytes are not counted.
    """
    flops = sum(op.count * part.flops for op in ops for part in _passes(op, direction))
    if len(ops) == 1:
        return Work(flops, sum(ops[0].count * part.bytes for part in _passes(ops[0], direction)))
    forward, backward = _together_bytes(ops, keeps)
    return Work(flops, {"forward": forward, "backward": backward, "both": forward + backward}[direction])


def _together_bytes(ops: Sequence[Op], keeps: Collection[str]) -> tuple[int, int]:
    """Bytes that several ops move if one kernel computes all of them: (forward pass, backward pass)."""
    first = next(op for op in ops if op.read_bytes)
    last = None if ops[-1].kind == "loss" else next(op for op in reversed(ops) if op.written_bytes)
    rows = sum(op.count * op.read_bytes for op in ops if op.kind == "embedding")
    weights = sum(op.count * op.weight_bytes for op in ops)
    cached = sum(op.count * (op.kv_read_bytes + op.kv_written_bytes) for op in ops)
    inputs = 0 if first.kind == "embedding" else first.read_bytes
    results = sum(op.written_bytes for op in ops if op is last or op.name in keeps)
    # The gradient of each term of a sum is the gradient of the sum, so the backward pass reads only that one tensor.
    again = min(inputs, first.written_bytes) if _linear(first) else inputs
    return inputs + rows + weights + cached + results, 2 * (again + weights) + rows + results


def least_s(ops: Iterable[Op], direction: Pass, bound: Callable[[int, int], float]) -> float:
    """The least seconds for these ops, one after the other. `bound(flops, bytes)` gives the least seconds of one op."""
    return sum(op.count * bound(*part) for op in ops for part in _passes(op, direction))


def need_bytes(ops: list[Op], direction: Pass, *, element_bytes: int) -> int:
    """Predict the peak bytes of one pass through these ops: inputs, weights, results and temporaries.

    A forward pass needs the weights, and at its peak the memory of one op and of the tensors that exist next to it. A
    backward pass needs the weights, and at its peak the saved activations (freed from the last op to the first), the
    weight gradients (which accumulate meanwhile) and the memory of the running op. The caller keeps inputs and results
    allocated. The gradient of the last result belongs to the caller and is not counted.
    element_bytes: bytes per weight or activation.
    """
    trained = sum(op.count * op.parameters for op in ops) + _lent_elements(ops)
    weights = element_bytes * (trained + sum(op.count * op.buffers for op in ops))
    if direction == "forward":
        return weights + max(
            (beside + op.forward_bytes for op, beside in zip(ops, _beside(ops), strict=True)), default=0
        )
    backward = _backward_bytes(ops, element_bytes)
    return weights + (max(_saving_bytes(ops), backward) if direction == "both" else backward)


def _lent_elements(ops: Iterable[Op]) -> int:
    """Elements of the matrix of a tied head, if the embedding, which owns the matrix, is not among the ops."""
    tied = [op for op in ops if op.tied]
    return 0 if any(op.kind == "embedding" for op in tied) else sum(op.matmul_elements for op in tied)


def _given_bytes(ops: Sequence[Op]) -> int:
    """Bytes of the activations that enter the first op that reads any."""
    first = next((op for op in ops if op.read_bytes), None)
    if first is None:
        return 0
    if first.selective_bytes:  # read_bytes of standard attention includes its own scores; only q, k and v are inputs
        return min(first.read_bytes, first.saved_bytes - first.selective_bytes)
    return first.read_bytes


def _beside(ops: Sequence[Op]) -> list[int]:
    """For each op of a forward pass, the bytes of the tensors that exist next to its own.

    They are the layer's input, the residual stream after the last sum, and the output of the norm before the running
    sublayer.
    """
    given, stream, inner = _given_bytes(ops), 0, 0
    beside: list[int] = []
    for op in ops:
        norm = op.kind == "norm" and op.component == "norms" and ".post_" not in op.name
        beside.append(0 if not beside else given if norm else given + stream + inner)
        if norm:
            inner = op.written_bytes
        elif op.name.endswith("_residual"):
            inner, stream = 0, 0 if op.name.endswith("ffn_residual") else op.written_bytes
    return beside


def _saving_bytes(ops: Sequence[Op]) -> int:
    """Peak bytes of a forward pass that saves activations for the backward pass, without weights."""
    saved, fullest = _given_bytes(ops), 0
    for index, op in enumerate(ops):
        before = saved + (op.count - 1) * op.saved_bytes - (saved if index == 0 else 0)
        fullest = max(fullest, before + op.forward_bytes + op.copied_bytes)
        saved += op.count * op.saved_bytes
    return fullest


def _backward_bytes(ops: Sequence[Op], element_bytes: int) -> int:
    """Peak bytes of a backward pass, without weights.

    Layers of one kind are alike. From one layer to the next, the bytes grow or shrink by a constant, so it is enough to
    compute the last and the first layer.
    """
    given, last = _given_bytes(ops), ops[-1]
    # The first op saves its input without a copy, so the input must not be counted twice.
    own_input = min(given, ops[0].saved_bytes - ops[0].selective_bytes - ops[0].copied_bytes)
    result = 0 if last.kind in ("loss", "attention") else last.written_bytes  # attention's result counts as saved
    alive = given - own_input + sum(op.count * op.saved_bytes for op in ops) + result
    stream = max((op.written_bytes for op in ops if op.name.endswith("_residual")), default=0)
    gradients = fullest = 0
    for _, group in groupby(reversed(ops), key=lambda op: op.layers):
        layer = list(group)
        saved, gradient = sum(op.saved_bytes for op in layer), sum(_gradient(op) * element_bytes for op in layer)
        count = layer[0].count
        for done in {0, count - 1}:
            moment = alive + gradients + done * (gradient - saved)
            for op in layer:
                moment += _gradient(op) * element_bytes
                temporary = op.backward_bytes - (op.written_bytes if op is last and not op.selective_bytes else 0)
                temporary += stream if op.layers and not op.name.endswith("_residual") else 0
                fullest = max(fullest, moment + temporary)
                moment -= op.saved_bytes
        alive -= count * saved
        gradients += count * gradient
    return fullest


def _gradient(op: Op) -> int:
    """Elements of the gradients of an op's weights. A tied head computes a gradient of the embedding's matrix too."""
    return op.parameters + (op.matmul_elements if op.tied and op.kind != "embedding" else 0)


def _passes(op: Op, direction: Pass) -> tuple[Work, ...]:
    forward, backward = _forward(op), _backward(op)
    return {"forward": (forward,), "backward": (backward,), "both": (forward, backward)}[direction]


def _forward(op: Op) -> Work:
    moved = op.weight_bytes + op.read_bytes + op.written_bytes + op.kv_read_bytes + op.kv_written_bytes
    return Work(op.forward_flops, moved)


def _backward(op: Op) -> Work:
    """FLOPs and bytes of the backward pass of an op.

    It reads inputs, weights and the gradient of the result, and writes the gradients of inputs and weights. Attention
    also reads its result. An op whose gradient does not depend on its inputs does not read them.
    """
    inputs, result = op.read_bytes, op.written_bytes
    moved = 2 * (inputs + op.weight_bytes) + result
    if op.kind == "attention":
        moved += result
    elif _linear(op):
        moved = inputs + result
    return Work(op.backward_flops + op.recompute_flops, moved)


def _linear(op: Op) -> bool:
    """Whether the gradient of an op does not depend on its inputs, as for rotations, copies and sums."""
    return op.kind == "elementwise" and not op.saved_bytes
