"""Recomputation: the bytes that a layer saves, and the ops that the backward pass runs again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

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


Module = Literal["core_attn", "layernorm", "mla_up_proj", "mlp", "moe_act", "shared_experts"]
"""The parts of a layer whose results the backward pass can compute again (Megatron's --recompute-modules).

- core_attn: the score matrices of attention. --recompute selective means the same.
- layernorm: the results of the norms before attention and before the feed-forward.
- mla_up_proj: queries, keys and values of latent attention, from its latents.
- mlp, shared_experts: all activations of a dense feed-forward, or of shared experts, from its input.
- moe_act: the result of the experts' activation.

Of the results of layernorm, mla_up_proj and moe_act, Megatron frees only the storage. The backward pass computes them
again as new tensors, and copies them into this storage. So they exist twice until the backward pass has used them
(CheckpointWithoutOutput in megatron/core/tensor_parallel/random.py).
"""

_AFTER_NORM = (".q_proj", ".q_a_proj", ".in_proj", ".ffn.gate_proj", ".ffn.up_proj", ".ffn.router", ".shared.gate_proj")
"""The ends of the names of the ops that save the result of a norm, because they read it first."""


class Discarded(NamedTuple):
    """What an op does not save, because the backward pass computes it again.

    part: the part of `Module` that the op belongs to, or "". size: bytes that the op does not save.
    copied: bytes among them that exist twice when they are computed again.
    """

    part: str = ""
    size: int = 0
    copied: int = 0


def discarded(ops: Sequence[Op], modules: Collection[str]) -> list[Discarded]:
    """Return, for each op of a layer, what it does not save.

    modules: the parts that the backward pass computes again.
    """
    if not modules:
        return [_NOTHING] * len(ops)
    latent = "mla_up_proj" in modules and any(op.name.endswith(".kv_b_proj") for op in ops)
    return [_discarded(op, modules, latent=latent) for op in ops]


_NOTHING = Discarded()


def _discarded(op: Op, modules: Collection[str], *, latent: bool) -> Discarded:
    """`latent`: whether queries, keys and values are computed again from latents."""
    saved = op.saved_bytes
    scores = op.selective_bytes if "core_attn" in modules else 0
    if op.role == "core":
        inputs = min(op.read_bytes, saved - op.selective_bytes) if latent else 0
        return Discarded("mla_up_proj" if inputs else "core_attn", scores + inputs, inputs)
    if latent and op.name.endswith((".q_b_proj", ".kv_b_proj")):
        return Discarded("mla_up_proj", saved)
    if "layernorm" in modules and op.kind == "matmul" and op.name.endswith(_AFTER_NORM):
        return Discarded("layernorm", saved, saved)
    for module in ("mlp", "shared_experts"):
        if module in modules and op.component == module and not op.name.endswith(_AFTER_NORM):
            return Discarded(module, saved)
    if "moe_act" in modules and op.name.endswith(".experts.down_proj"):
        return Discarded("moe_act", saved, saved)
    return Discarded("core_attn", scores) if scores else _NOTHING


def checkpoint_bytes(
    layer: Sequence[Op], recompute: Recompute, stream_bytes: int, modules: Collection[str] = ()
) -> int:
    """Return the bytes that a layer saves in its forward pass for its backward pass.

    stream_bytes: bytes of the input of the layer, which is the residual stream. modules: see `discarded`.
    """
    return sum(checkpoint_terms(layer, recompute, stream_bytes, modules).values())


def checkpoint_terms(
    layer: Sequence[Op], recompute: Recompute, stream_bytes: int, modules: Collection[str] = ()
) -> dict[str, int]:
    """Return the terms of `checkpoint_bytes` in bytes. A term that is subtracted is negative."""
    saved = sum(op.saved_bytes for op in layer)
    everything = {"saved by all ops": saved}
    if recompute in ("none", "selective"):
        again = sum(part.size for part in discarded(layer, modules))
        return everything | {"computed again": -again} if again else everything
    terms = {"input of the layer": stream_bytes}
    if recompute == "every-second":
        terms["outputs of every second product"] = sum(op.written_bytes for op in _saved_products(layer))
        cores = sum(op.saved_bytes - op.read_bytes for op in layer if op.kind == "attention")
        terms["attention"] = max(0, cores)
    return terms if sum(terms.values()) < saved else everything


def _saved_products(layer: Sequence[Op]) -> list[Op]:
    return [op for op in layer if op.kind == "matmul"][::2]
