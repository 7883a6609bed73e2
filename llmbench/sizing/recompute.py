"""Recomputation: the bytes that a layer saves, and the ops that the backward pass runs again."""

from __future__ import annotations

from collections.abc import Sequence

from llmbench.sizing.op import Op
from llmbench.sizing.workload import Recompute


def repeated(layer: Sequence[Op], recompute: Recompute) -> list[Op]:
    """Return the ops of a layer that the backward pass runs again.

    - none: no ops.
    - selective: the ops that save score matrices. Flash attention saves no score matrices.
    - full: all ops.
    - every-second: all ops except attention and every second matrix product. The outputs of these two are saved
      (torchtitan's selective checkpointing).
    """
    if recompute == "none":
        return []
    if recompute == "selective":
        return [op for op in layer if op.selective_bytes]
    if recompute == "full":
        return list(layer)
    saved = {id(op) for op in _saved_products(layer)}
    return [op for op in layer if id(op) not in saved and op.kind != "attention"]


def checkpoint_bytes(layer: Sequence[Op], recompute: Recompute, stream_bytes: int) -> int:
    """Return the bytes that a layer saves in its forward pass for its backward pass.

    stream_bytes: bytes of the input of the layer, which is the residual stream.
    """
    return sum(checkpoint_terms(layer, recompute, stream_bytes).values())


def checkpoint_terms(layer: Sequence[Op], recompute: Recompute, stream_bytes: int) -> dict[str, int]:
    """Return the terms of `checkpoint_bytes` in bytes. A term that is subtracted is negative."""
    saved = sum(op.saved_bytes for op in layer)
    everything = {"saved by all ops": saved}
    if recompute == "none":
        return everything
    if recompute == "selective":
        return everything | {"score matrices": -sum(op.selective_bytes for op in layer)}
    terms = {"input of the layer": stream_bytes}
    if recompute == "every-second":
        terms["outputs of every second product"] = sum(op.written_bytes for op in _saved_products(layer))
        cores = sum(op.saved_bytes - op.read_bytes for op in layer if op.kind == "attention")
        terms["attention"] = max(0, cores)
    return terms if sum(terms.values()) < saved else everything


def _saved_products(layer: Sequence[Op]) -> list[Op]:
    return [op for op in layer if op.kind == "matmul"][::2]
