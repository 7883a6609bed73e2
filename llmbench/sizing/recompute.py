"""What recomputation gives up in forward and does again in backward: one policy, seen as bytes and as FLOPs."""

from __future__ import annotations

from collections.abc import Sequence

from llmbench.sizing.op import Op
from llmbench.sizing.workload import Recompute


def repeated(layer: Sequence[Op], recompute: Recompute) -> list[Op]:
    """The ops of a layer that backward runs again.

    selective: those that hold score matrices (none, where attention is flash). full: all. every-second: all but the
    attention itself and every second matrix product, whose outputs are kept (torchtitan's selective checkpointing).
    """
    if recompute == "none":
        return []
    if recompute == "selective":
        return [op for op in layer if op.selective_bytes]
    if recompute == "full":
        return list(layer)
    kept = {id(op) for op in _kept_products(layer)}
    return [op for op in layer if id(op) not in kept and op.kind != "attention"]


def checkpoint_bytes(layer: Sequence[Op], recompute: Recompute, stream_bytes: int) -> int:
    """What a layer keeps from its forward to its backward; `stream_bytes` is its input."""
    saved = sum(op.saved_bytes for op in layer)
    if recompute == "none":
        return saved
    if recompute == "selective":
        return saved - sum(op.selective_bytes for op in layer)
    if recompute == "full":
        return min(saved, stream_bytes)
    outputs = sum(op.written_bytes for op in _kept_products(layer))
    cores = sum(op.saved_bytes - op.read_bytes for op in layer if op.kind == "attention")
    return min(saved, stream_bytes + outputs + max(0, cores))


def _kept_products(layer: Sequence[Op]) -> list[Op]:
    return [op for op in layer if op.kind == "matmul"][::2]
