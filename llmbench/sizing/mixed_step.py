"""A step in which an engine decodes some sequences and processes a chunk of a prompt at the same time."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import msgspec

from llmbench.errors import SpecError
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Collective, Op
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.model import ModelSpec

_SUMS = (
    "rows",
    "forward_flops",
    "read_bytes",
    "written_bytes",
    "kv_read_bytes",
    "kv_written_bytes",
    "forward_bytes",
)
"""The figures of a mixed step that are sums over its two parts."""


def mixed_step(spec: ModelSpec, decode: Workload, chunk: Workload, layout: Layout | None = None) -> list[Op]:
    """Return the ops of a step that decodes the sequences of one workload and prefills the chunk of another one.

    Both parts share every matrix product, so the step reads the weights once, and the experts that any of its tokens
    select. Attention runs for each part with its own cache. Ops that only one part has are those of this part. With
    latent attention, the two parts can compute the keys in different ways.

    Raises SpecError if the first workload does not decode, if the second one is not a prefill, and for a model whose
    encoder reads the prompt.
    """
    if decode.phase != "decode" or chunk.phase != "prefill":
        raise SpecError(f"a mixed step decodes and prefills, but the phases are {decode.phase} and {chunk.phase}")
    if spec.encoder is not None:
        raise SpecError(f"{spec.name} reads a prompt with its encoder, as a whole: a step cannot have a chunk of it")
    layout = layout or Layout()
    tokens = decode.batch * decode.query_len + chunk.batch * chunk.query_len
    whole = msgspec.structs.replace(chunk, batch=1, query_len=tokens, kv_len=tokens)
    together = {(op.name, op.layers): op for op in lower(spec, whole, layout)}
    parts: dict[tuple[str, tuple[int, ...]], list[Op]] = {}
    for workload in (chunk, decode):
        for op in lower(spec, workload, layout):
            parts.setdefault((op.name, op.layers), []).append(op)
    return [_joined(ops, together.get(key)) for key, ops in parts.items()]


def _joined(ops: list[Op], whole: Op | None) -> Op:
    """Return the op of both parts. whole: the op of a step with the tokens of both parts."""
    if len(ops) == 1:
        return ops[0]
    first = ops[0]
    figures = {name: sum(getattr(op, name) for op in ops) for name in _SUMS}
    weights = first if whole is None else whole
    return msgspec.structs.replace(
        first,
        **figures,
        weight_bytes=weights.weight_bytes,
        experts_met=weights.experts_met,
        scores=None,  # the two parts have scores of different shapes
        collectives=tuple(_sums(each for op in ops for each in op.collectives)),
    )


def _sums(collectives: Iterable[Collective]) -> Iterable[Collective]:
    """Add the bytes of collectives of the same kind, group and pass, which move the tokens of both parts at once."""

    def alike(each: Collective) -> tuple[str, str, str]:
        return each.kind, each.group, each.when

    for _, some in groupby(sorted(collectives, key=alike), alike):
        same = list(some)
        times = max(1, len(same) // 2)
        total = sum(each.bytes for each in same)
        yield from (msgspec.structs.replace(same[0], bytes=total // times) for _ in range(times))
