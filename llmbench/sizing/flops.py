"""FLOPs of one step. They are sums over the ops."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from llmbench.sizing.lower import lower
from llmbench.sizing.mixed_step import mixed_step
from llmbench.sizing.op import Op
from llmbench.sizing.params import TABLES
from llmbench.sizing.recompute import repeated
from llmbench.sizing.workload import Recompute, Workload
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.sizing.adapters import Adapters


class Flops(msgspec.Struct, frozen=True, kw_only=True):
    """FLOPs and bytes of one step over `tokens` new tokens. A multiply-add counts as 2 FLOPs.

    total: FLOPs of the forward pass, in training also of the backward pass: the sum matmul + attention + recurrent.
    matmul: FLOPs of products with weights.
    attention: FLOPs of the attention scores and of their products with the values.
    recurrent: FLOPs of convolutions and recurrences.
    recompute: FLOPs that the backward pass computes a second time (the scores of flash attention, and recomputed
        layers). The total does not include them.
    tokens: number of new tokens: batch × query length, and the tokens of a chunk.
    rule: the rule of thumb, which is 2·N FLOPs per token for a forward pass and 6·N for training. N is the number of
        active parameters, without embedding tables and head. Frozen parameters count 4·N in training, because they need
        no gradient.
    components: the FLOPs of each component. Their sum is the total.
    weight_bytes: bytes of the weights that the forward pass reads, with the expected number of experts.
    kv_read_bytes, kv_written_bytes: bytes of caches and recurrent states that the forward pass reads and writes.
    """

    total: int
    matmul: int
    attention: int
    recurrent: int
    recompute: int
    tokens: int
    rule: int
    components: dict[str, int]
    weight_bytes: int
    kv_read_bytes: int
    kv_written_bytes: int

    @property
    def per_token(self) -> float:
        """The total FLOPs per new token."""
        return self.total / self.tokens


def count_flops(
    spec: ModelSpec,
    workload: Workload,
    *,
    recompute: Recompute = "none",
    adapters: Adapters | None = None,
    chunk: Workload | None = None,
) -> Flops:
    """Count the FLOPs of one step of a workload, on the whole model.

    adapters: adapters that are trained in place of the weights of the model, which are frozen.
    chunk: a chunk of a prompt that a decoding step processes too (see `mixed_step`).

    Raises SpecError for targets of adapters that the model does not have, and for a chunk that is not possible.
    """
    ops = step_ops(spec, workload, adapters, chunk)
    sums = dict.fromkeys(("matmul", "attention", "recurrent"), 0)
    components: dict[str, int] = {}
    for op in ops:
        flops = step_flops(op, workload)
        kind = op.kind if op.kind in ("matmul", "attention") else "recurrent"
        sums[kind] += flops
        if flops:
            components[op.component] = components.get(op.component, 0) + flops
    tokens = sum(part.batch * part.query_len for part in (workload, chunk) if part is not None)
    active = sum(op.count * op.active_parameters for op in ops if op.component not in TABLES)
    frozen = sum(op.count * op.active_parameters for op in ops if op.component not in TABLES and op.frozen)
    return Flops(
        total=sum(sums.values()),
        recompute=recomputed_flops(ops, recompute) if workload.phase == "train" else 0,
        tokens=tokens,
        rule=(6 * active - 2 * frozen if workload.phase == "train" else 2 * active) * tokens,
        components=components,
        weight_bytes=sum(op.count * op.weight_bytes for op in ops),
        kv_read_bytes=sum(op.count * op.kv_read_bytes for op in ops),
        kv_written_bytes=sum(op.count * op.kv_written_bytes for op in ops),
        **sums,
    )


def step_ops(
    spec: ModelSpec, workload: Workload, adapters: Adapters | None = None, chunk: Workload | None = None
) -> list[Op]:
    """Return the ops of one step on the whole model. adapters, chunk: see `count_flops`."""
    if chunk is not None:
        return mixed_step(spec, workload, chunk)
    ops = lower(spec, workload)
    if adapters is None:
        return ops
    from llmbench.sizing.adapted_ops import adapt  # only runs with adapters need it

    return adapt(ops, adapters, workload)


def trained_parameters(spec: ModelSpec, adapters: Adapters) -> tuple[int, int]:
    """Return the parameters of all adapters, and the frozen parameters of the model."""
    ops = step_ops(spec, Workload.train(1), adapters)
    trained = sum(op.count * op.trained for op in ops)
    return trained, sum(op.count * op.parameters for op in ops) - trained


def step_flops(op: Op, workload: Workload) -> int:
    """Return the FLOPs of all instances of an op. In training, they include the backward pass."""
    return op.count * (op.forward_flops + (op.backward_flops if workload.phase == "train" else 0))


def recomputed_flops(ops: list[Op], recompute: Recompute) -> int:
    """Return the FLOPs that the backward pass computes a second time: scores of flash attention, and repeated ops."""
    return sum(op.count * op.recompute_flops for op in ops) + repeated_flops(ops, recompute)


def repeated_flops(ops: list[Op], recompute: Recompute) -> int:
    """Return the FLOPs of the ops that recomputation runs again. See `repeated` for what each choice runs again."""
    layers: dict[tuple[str, str], list[Op]] = {}
    for op in ops:
        if op.layer:
            layers.setdefault((op.stack, op.layer), []).append(op)
    return sum(op.count * op.forward_flops for layer in layers.values() for op in repeated(layer, recompute))
