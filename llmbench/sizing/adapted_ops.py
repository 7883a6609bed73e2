"""The ops of a model whose weights are frozen, with low-rank adapters on some matrices.

`adapt` changes the op table of a training step. A frozen matrix product needs no gradient of its weights, so it does
not save its input, and its backward pass costs as much as its forward pass. An adapter adds two small products. Before
the first adapter, no op has a backward pass. A quantised matrix is converted to the format of the activations for each
product, one matrix at a time.

Tensor parallelism: of a matrix that is split by its outputs, A is on every GPU and B is split. Of a matrix that is
split by its inputs, A is split and B is on every GPU. Each GPU computes a part of the gradient of a matrix that is on
every GPU, so an all-reduce adds these parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

import msgspec

from llmbench.errors import SpecError
from llmbench.sizing.adapters import DEFAULT_TARGETS, Adapters
from llmbench.sizing.dtypes import bits_of, bytes_of
from llmbench.sizing.op import Collective, Op
from llmbench.sizing.weight_recipe import WeightRecipe
from llmbench.sizing.workload import Workload

_NOT_ADAPTED = ("experts", "router", "lm_head", "embedding")
"""Components without adapters. PEFT's `all-linear` leaves them out, too."""


class _Input(NamedTuple):
    """The input tensor of a matrix product.

    owner: name of the product that saves it, or "" if an op of another kind saves it. size: bytes that are saved for
    it.
    """

    owner: str
    size: int


def adapt(ops: list[Op], adapters: Adapters, workload: Workload, base: WeightRecipe | None = None) -> list[Op]:
    """Return the ops of a training step with frozen weights and with adapters.

    base: how the frozen weights are stored. None: in the format of the workload.

    Raises SpecError if a target is not a matrix of the model, or is one that has no adapters.
    """
    _check_targets(ops, adapters)
    inputs = _inputs(ops)
    adapted: list[Op] = []
    saved: set[tuple[str, str]] = set()
    for op in ops:
        adapted.append(_frozen(op, workload, base))
        if _is_target(op, adapters):
            source = inputs[id(op)]
            key = (op.layer, source.owner)
            first = key not in saved
            saved.add(key)
            adapted += _adapter(op, adapters, workload, source.size if first else 0)
    return _without_early_gradients(adapted, {op.name: inputs[id(op)].owner for op in ops if id(op) in inputs})


def _is_linear(op: Op) -> bool:
    return (
        op.kind == "matmul"
        and bool(op.layer)
        and op.matrix is not None
        and op.matrix[0] == 1
        and op.component not in _NOT_ADAPTED
    )


def _leaf(op: Op) -> str:
    return op.name.rpartition(".")[2].removesuffix("_proj")


def _matches(op: Op, target: str) -> bool:
    if target == "all-linear":
        return True
    if target == "attention":
        return op.component == "attention"
    if target == "mlp":
        return op.component in ("mlp", "shared_experts") and not op.name.endswith("shared_gate")
    return _leaf(op) == target


def _is_target(op: Op, adapters: Adapters) -> bool:
    return _is_linear(op) and any(_matches(op, target) for target in adapters.targets)


def _check_targets(ops: Iterable[Op], adapters: Adapters) -> None:
    linear = [op for op in ops if _is_linear(op)]
    for target in adapters.targets:
        if any(_matches(op, target) for op in linear):
            continue
        parts = [part for part in ("attention", "mlp") if any(_matches(op, part) for op in linear)]
        matrices = ", ".join(dict.fromkeys(_leaf(op) for op in linear))
        parts.append("all-linear")
        other = msgspec.structs.replace(adapters, targets=(parts[0],))
        hint = f"its matrices are {matrices}. targets={' or '.join(parts)} names several: for example --lora {other}"
        if any(_leaf(op) == target or op.component == target for op in ops if op.component in _NOT_ADAPTED):
            raise SpecError(
                f"lora targets: `{target[:40]}` is a part to which llmbench adds no adapters: experts, routers, "
                "embedding and head",
                hint=hint,
            )
        default = adapters.targets == DEFAULT_TARGETS
        why = f", and targets={','.join(DEFAULT_TARGETS)} is the default" if default else ""
        raise SpecError(
            f"lora targets: the model has no matrix `{target[:40]}`{why}",
            hint=hint,
        )


def _inputs(ops: list[Op]) -> dict[int, _Input]:
    """Return the input tensor of each matrix product inside the layers, by the id of the op.

    Products with a common input save it once. The op table says which product saves it. The others have the same width,
    and their names have the longest beginning in common with it.
    """
    layers: dict[tuple[str, str], list[Op]] = {}
    for op in ops:
        if op.layer:
            layers.setdefault((op.stack, op.layer), []).append(op)
    found: dict[int, _Input] = {}
    for layer in layers.values():
        owners: list[Op] = []
        before: Op | None = None
        for op in layer:
            if op.kind == "matmul" and op.component not in ("experts", "router"):
                owner: Op | None = op
                if not op.saved_bytes:
                    same = [each for each in owners if each.read_bytes == op.read_bytes]
                    from_function = before is not None and before.role is not None
                    owner = None if from_function else max(same, key=lambda each: _common(each, op), default=None)
                else:
                    owners.append(op)
                found[id(op)] = _Input("", 0) if owner is None else _Input(owner.name, owner.saved_bytes)
            before = op
    return found


def _common(first: Op, second: Op) -> int:
    """Return how many parts the beginnings of two names have in common."""
    pairs = zip(first.name.split("."), second.name.split("."), strict=False)
    count = 0
    for one, other in pairs:
        if one != other:
            break
        count += 1
    return count


def _frozen(op: Op, workload: Workload, base: WeightRecipe | None) -> Op:
    """Return an op without gradients of its weights."""
    changes: dict[str, int | bool] = {"frozen": True}
    if op.kind == "embedding":
        changes["saved_bytes"] = 0
    if op.kind == "matmul":
        changes["backward_flops"] = op.forward_flops
        changes["saved_bytes"] = _saved_by_frozen(op, workload)
        if op.component == "experts" and workload.kernels == "eager":
            changes["backward_bytes"] = op.read_bytes + op.written_bytes
        if op.matrix is not None and base is not None and op.parameters:
            layer = op.layers[0] if op.layers else None
            if base.storage(op, layer) is not None:
                copies, inside, outside = op.matrix
                scratch = bytes_of(copies * inside * outside, workload.activation_dtype)
                changes["forward_bytes"] = op.forward_bytes + scratch
                changes["backward_bytes"] = changes.get("backward_bytes", op.backward_bytes) + scratch
    if op.kind == "norm" and op.parameters and workload.kernels == "eager":
        # the normalised values are saved only for the gradient of a weight per head
        rows = 2 * op.read_bytes
        changes["saved_bytes"] = op.saved_bytes - (op.read_bytes if op.saved_bytes > rows else 0)
    return msgspec.structs.replace(op, **changes)


def _saved_by_frozen(op: Op, workload: Workload) -> int:
    """Return the bytes that a frozen matrix product saves. Only a router of plain PyTorch saves more than its input."""
    if op.component != "router" or workload.kernels == "fused":
        return 0
    copy = op.read_bytes * 32 // bits_of(workload.activation_dtype)
    return op.saved_bytes - (copy if op.saved_bytes >= copy else 0)


def _adapter(op: Op, adapters: Adapters, workload: Workload, saved: int) -> list[Op]:
    """Return the ops of the adapter of one matrix. saved: bytes of the input that no other adapter saves.

    With dropout, the adapter saves a copy of its input and a mask of one byte per element, and no adapter needs the
    input itself. DoRA scales the outputs of matrix and adapter with a trained vector, so it saves both outputs.
    """
    assert op.matrix is not None
    _, inside, outside = op.matrix
    r = adapters.r
    tokens = op.forward_flops // (2 * op.matmul_elements)
    own = op.parameters > 0  # else an earlier layer owns the weights
    by_inputs = any(each.kind in ("all_reduce", "reduce_scatter") and each.when == "forward" for each in op.collectives)
    split_in = op.shards if by_inputs else 1
    split_out = op.shards // split_in
    act = workload.activation_dtype
    dropped = tokens * inside + bytes_of(tokens * inside, act) if adapters.dropout else 0
    middle, out = bytes_of(tokens * r, act), op.written_bytes

    def added_up(parameters: int, when: Literal["forward", "backward"]) -> Collective:
        return Collective("all_reduce", bytes_of(parameters, workload.weight_dtype), "tp", when)

    def product(name: str, one: int, other: int, shards: int, formula: str, saves: int, backward: int) -> Op:
        flops = 2 * tokens * one * other
        read, written = bytes_of(tokens * one, act), bytes_of(tokens * other, act)
        return msgspec.structs.replace(
            op,
            name=f"{op.name}.{name}",
            parameters=one * other if own else 0,
            active_parameters=one * other if own else 0,
            matmul_elements=one * other,
            matrix=(1, one, other),
            shards=shards,
            formula=formula if own else "",
            forward_flops=flops,
            backward_flops=2 * flops,
            weight_bytes=bytes_of(one * other, workload.weight_dtype),
            read_bytes=read,
            written_bytes=written,
            forward_bytes=read + written,
            saved_bytes=saves,
            backward_bytes=backward,
            # One GPU has only a part of the gradient of a whole matrix.
            collectives=(added_up(one * other, "backward"),) if own and shards < op.shards else (),
        )

    # Gradients during the backward pass: of the output of the matrix, of the scaled output of B, of the output of A,
    # and of the input.
    a = product(
        "lora_A", inside, r, split_in, f"{inside * split_in:,} × r", dropped or saved, out + middle + op.read_bytes
    )
    b = product("lora_B", r, outside, split_out, f"r × {outside * split_out:,}", middle, 2 * out + middle)
    added = product("lora_sum", 0, 0, 1, "", 0, 0)
    added = msgspec.structs.replace(
        added,
        kind="elementwise",
        matrix=None,
        read_bytes=2 * out,
        written_bytes=out,
        forward_bytes=3 * out,
        backward_bytes=2 * out,
        collectives=(),
    )
    if not adapters.dora:
        return [a, b, added]
    # Each step computes the norms of the outputs' weights: W + alpha/r · B A, which are not differentiated. GPUs that
    # split the inputs add their squares.
    weights = bytes_of(inside * outside, act)
    magnitude = msgspec.structs.replace(
        added,
        name=f"{op.name}.lora_magnitude",
        kind="matmul",
        parameters=outside if own else 0,
        active_parameters=outside if own else 0,
        shards=split_out,
        formula=f"{outside * split_out:,}" if own else "",
        forward_flops=2 * r * inside * outside,
        weight_bytes=bytes_of(outside, workload.weight_dtype),
        saved_bytes=2 * out,
        forward_bytes=3 * out + 2 * weights,
        backward_bytes=4 * out,
        collectives=(added_up(outside, "forward"), added_up(outside, "backward")) if by_inputs else (),
    )
    return [a, b, magnitude]


def _without_early_gradients(ops: list[Op], owners: dict[str, str]) -> list[Op]:
    """Remove the backward pass of the ops before the first adapter, because their inputs need no gradient.

    In the layer of the first adapter, this is also true for the frozen products with the same input as the adapted
    matrix, and for the ops of their module that no adapter precedes. The adapters of this input compute no gradient of
    it either. All other ops of this layer count as if all their inputs needed a gradient. This is at most a few tensors
    too much, in one layer.

    owners: for each product, the name of the product that saves its input ("": an op of another kind).
    """
    stack = next(op.stack for op in ops if not op.frozen)
    first = min(min(op.layers) for op in ops if not op.frozen and op.stack == stack)
    result: list[Op] = []
    source: str | None = None  # the owner of the input of the first adapter
    without_gradient: set[str] = set()  # modules of the first layer that read this input
    with_gradient: set[str] = set()  # modules of the first layer in which an op has a gradient
    for op in ops:
        if op.stack != stack or (not op.layer and source is not None):
            result.append(op)
            continue
        earlier = tuple(layer for layer in op.layers if layer < first)
        later = tuple(layer for layer in op.layers if layer > first)
        if earlier or not op.layer:
            result.append(_without_backward(msgspec.structs.replace(op, layers=earlier)))
        if first in op.layers:
            in_first = msgspec.structs.replace(op, layers=(first,))
            matrix, _, part = op.name.partition(".lora_")
            owner = owners.get(matrix)
            if source is None and not op.frozen:
                source = owner or matrix
                if not owner and not op.saved_bytes:  # no other op saves the input now
                    in_first = msgspec.structs.replace(in_first, saved_bytes=op.read_bytes)
            module = matrix.rpartition(".")[0]
            if source is None or (op.frozen and (owner == source or module in without_gradient - with_gradient)):
                if owner == source and module.count(".") > 1:
                    without_gradient.add(module)
                in_first = _without_backward(in_first)
            else:
                with_gradient.add(module)
                if part == "A" and (owner or matrix) == source:
                    in_first = msgspec.structs.replace(
                        in_first,
                        backward_flops=op.forward_flops,
                        backward_bytes=op.backward_bytes - op.read_bytes,
                        saved_bytes=min(in_first.saved_bytes, op.read_bytes),  # dropout saves no mask
                    )
            result.append(in_first)
        if later:
            result.append(msgspec.structs.replace(op, layers=later))
    return result


def _without_backward(op: Op) -> Op:
    """Return an op without a backward pass."""
    return msgspec.structs.replace(
        op,
        backward_flops=0,
        recompute_flops=0,
        saved_bytes=0,
        copied_bytes=0,
        selective_bytes=0,
        backward_bytes=0,
        collectives=tuple(each for each in op.collectives if each.when == "forward"),
    )
