"""FLOPs, bytes moved and peak memory of ops, for a forward or a backward pass.

Bytes moved are the bytes between a chip and its memory if the chip reads every input once and writes every output once.
A real cache can move fewer or more bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from typing import Literal, NamedTuple

from llmbench.sizing.op import Op

__all__ = ["Pass", "Work", "least_s", "need_bytes", "work"]

Pass = Literal["forward", "backward", "both"]
"""The passes to count: a forward pass, a backward pass, or a forward pass and then a backward pass."""


class Work(NamedTuple):
    """The FLOPs and the bytes moved of one pass."""

    flops: int
    bytes: int


def work(ops: Sequence[Op], direction: Pass, *, keeps: Collection[str] = ()) -> Work:
    """Return the least FLOPs and the least bytes moved for one pass through all instances of these ops.

    The FLOPs are the sum over the ops. The bytes moved are weights, looked-up table rows, caches, the input of the
    first op and the output of the last op. A result that only another op reads may stay on the chip, so its bytes are
    not counted. A backward pass reads inputs, weights and the gradients of results. It writes the gradients of inputs
    and weights. The result of a loss is one number, and its bytes are not counted.

    keeps: names of ops whose results are counted, although only another op reads them.
    """
    flops = sum(op.count * part.flops for op in ops for part in _passes(op, direction))
    if len(ops) == 1:
        return Work(flops, sum(ops[0].count * part.bytes for part in _passes(ops[0], direction)))
    forward, backward = _together_bytes(ops, keeps)
    return Work(flops, {"forward": forward, "backward": backward, "both": forward + backward}[direction])


def _together_bytes(ops: Sequence[Op], keeps: Collection[str]) -> tuple[int, int]:
    """Return the bytes moved by one kernel that computes several ops, as (forward pass, backward pass)."""
    first = next(op for op in ops if op.read_bytes)
    last = None if ops[-1].kind == "loss" else next(op for op in reversed(ops) if op.written_bytes)
    rows = sum(op.count * op.read_bytes for op in ops if op.kind == "embedding")
    weights = sum(op.count * op.weight_bytes for op in ops)
    cached = sum(op.count * (op.kv_read_bytes + op.kv_written_bytes) for op in ops)
    inputs = 0 if first.kind == "embedding" else first.read_bytes
    results = sum(op.written_bytes for op in ops if op is last or op.name in keeps)
    # The gradient of a sum equals the gradient of each of its terms. So the backward pass of a sum reads one tensor,
    # not one per term.
    again = min(inputs, first.written_bytes) if _linear(first) else inputs
    return inputs + rows + weights + cached + results, 2 * (again + weights) + rows + results


def least_s(ops: Iterable[Op], direction: Pass, bound: Callable[[int, int], float]) -> float:
    """Return the least seconds for these ops if they run one after the other.

    bound: function that returns the least seconds of one op from its FLOPs and its bytes moved.
    """
    return sum(op.count * bound(*part) for op in ops for part in _passes(op, direction))


def need_bytes(ops: list[Op], direction: Pass, *, element_bytes: int) -> int:
    """Predict the peak bytes of one pass through these ops: inputs, weights, results and temporaries.

    A forward pass needs the weights and, at its peak, the memory of the running op and of other tensors that still
    exist. A backward pass needs the weights and, at its peak, three more things: the activations that are still saved,
    the weight gradients computed so far, and the memory of the running op. The backward pass frees the activations of
    the last op first. The caller keeps inputs and results allocated. The gradient of the last result belongs to the
    caller and is not counted.

    element_bytes: bytes per element of weights and activations.
    """
    trained = sum(op.count * op.parameters for op in ops) + _tied_head_elements(ops)
    weights = element_bytes * (trained + sum(op.count * op.buffers for op in ops))
    if direction == "forward":
        return weights + max(
            (other_bytes + op.forward_bytes for op, other_bytes in zip(ops, _other_tensor_bytes(ops), strict=True)),
            default=0,
        )
    backward = _backward_bytes(ops, element_bytes)
    return weights + (max(_saving_bytes(ops), backward) if direction == "both" else backward)


def _tied_head_elements(ops: Iterable[Op]) -> int:
    """Return the number of elements in the matrix of a tied head, or 0 if the ops contain the embedding.

    The embedding owns this matrix, so the embedding's own parameters count it.
    """
    tied = [op for op in ops if op.tied]
    return 0 if any(op.kind == "embedding" for op in tied) else sum(op.matmul_elements for op in tied)


def _input_bytes(ops: Sequence[Op]) -> int:
    """Return the bytes of the activations that enter the ops. They are the input of the first op that reads
    activations."""
    first = next((op for op in ops if op.read_bytes), None)
    if first is None:
        return 0
    # read_bytes of standard attention also counts its scores, but only q, k and v enter the op
    if first.selective_bytes:
        return min(first.read_bytes, first.saved_bytes - first.selective_bytes)
    return first.read_bytes


def _other_tensor_bytes(ops: Sequence[Op]) -> list[int]:
    """For each op of a forward pass, return the bytes of other tensors that exist while the op runs.

    These tensors are the input of the layer, the residual stream after the last sum, and the output of the norm before
    the running sublayer.
    """
    input_bytes, stream, inner = _input_bytes(ops), 0, 0
    other_bytes: list[int] = []
    for op in ops:
        norm = op.kind == "norm" and op.component == "norms" and ".post_" not in op.name
        other_bytes.append(0 if not other_bytes else input_bytes if norm else input_bytes + stream + inner)
        if norm:
            inner = op.written_bytes
        elif op.name.endswith("_residual"):
            inner, stream = 0, 0 if op.name.endswith("ffn_residual") else op.written_bytes
    return other_bytes


def _saving_bytes(ops: Sequence[Op]) -> int:
    """Return the peak bytes of a forward pass that saves activations for the backward pass, without the weights."""
    saved, peak = _input_bytes(ops), 0
    for index, op in enumerate(ops):
        before = saved + (op.count - 1) * op.saved_bytes - (saved if index == 0 else 0)
        peak = max(peak, before + op.forward_bytes + op.copied_bytes)
        saved += op.count * op.saved_bytes
    return peak


def _backward_bytes(ops: Sequence[Op], element_bytes: int) -> int:
    """Return the peak bytes of a backward pass, without the weights.

    All layers of one kind are equal. From one layer to the next, the allocated bytes change by a constant. So the peak
    of these layers is in the first or in the last of them, and only these two are computed.
    """
    input_bytes, last = _input_bytes(ops), ops[-1]
    # The first op saves its input without a copy. So the input must not count twice.
    own_input = min(input_bytes, ops[0].saved_bytes - ops[0].selective_bytes - ops[0].copied_bytes)
    # the result of attention is already among its saved bytes
    result = 0 if last.kind in ("loss", "attention") else last.written_bytes
    alive = input_bytes - own_input + sum(op.count * op.saved_bytes for op in ops) + result
    stream = max((op.written_bytes for op in ops if op.name.endswith("_residual")), default=0)
    gradients = peak = 0
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
                peak = max(peak, moment + temporary)
                moment -= op.saved_bytes
        alive -= count * saved
        gradients += count * gradient
    return peak


def _gradient(op: Op) -> int:
    """Return the number of gradient elements of an op's weights.

    A tied head also computes a gradient of the embedding's matrix.
    """
    return op.parameters + (op.matmul_elements if op.tied and op.kind != "embedding" else 0)


def _passes(op: Op, direction: Pass) -> tuple[Work, ...]:
    forward, backward = _forward(op), _backward(op)
    return {"forward": (forward,), "backward": (backward,), "both": (forward, backward)}[direction]


def _forward(op: Op) -> Work:
    moved = op.weight_bytes + op.read_bytes + op.written_bytes + op.kv_read_bytes + op.kv_written_bytes
    return Work(op.forward_flops, moved)


def _backward(op: Op) -> Work:
    """Return the FLOPs and bytes moved of the backward pass of an op.

    The pass reads the inputs, the weights and the gradient of the result. It writes the gradients of inputs and
    weights. Attention also reads its result. An op like a sum does not read its inputs, because its gradient does not
    depend on them.
    """
    inputs, result = op.read_bytes, op.written_bytes
    moved = 2 * (inputs + op.weight_bytes) + result
    if op.kind == "attention":
        # Standard attention moves seven matrices of scores: it reads P for dV, writes dP, reads dP and P, writes dS,
        # and reads dS for dQ and for dK. The other terms count eight.
        moved += result - op.score_bytes
    elif _linear(op):
        moved = inputs + result
    return Work(op.backward_flops + op.recompute_flops, moved)


def _linear(op: Op) -> bool:
    """Return whether the gradient of an op does not depend on its inputs. Examples are rotations, copies and sums."""
    return op.kind == "elementwise" and not op.saved_bytes
