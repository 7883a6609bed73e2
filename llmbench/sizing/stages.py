"""Pipeline stages: the layers of each stage, and the number of micro-batches that are in flight."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import mul

import msgspec

from llmbench.sizing.op import Op
from llmbench.sizing.stage_plan import chunk_parts
from llmbench.sizing.workload import Layout
from llmbench.spec.model import ModelSpec


class Chunk(msgspec.Struct, frozen=True):
    """Consecutive layers of one pipeline stage.

    before: ops before the first layer of the model. after: ops after the last layer of the model.
    layers: ops of each layer of the chunk. Layers with the same ops are one object. Modules for multi-token prediction
        come last.
    first_layer: index of the first of these layers in the model. Encoder layers come before decoder layers.
    """

    before: tuple[Op, ...]
    layers: tuple[tuple[Op, ...], ...]
    after: tuple[Op, ...]
    first_layer: int = 0

    @property
    def ops(self) -> list[Op]:
        """All ops of the chunk in the order of the forward pass. An op occurs once per layer of the chunk."""
        return [*self.before, *(op for layer in self.layers for op in layer), *self.after]


class Stage(msgspec.Struct, frozen=True):
    """One pipeline stage. It has one chunk of layers. With interleaving, it has `interleave` chunks."""

    index: int
    chunks: tuple[Chunk, ...]

    @property
    def ops(self) -> list[Op]:
        """All ops of the stage. An op occurs once for each of its layers in the stage."""
        return [op for chunk in self.chunks for op in chunk.ops]

    @property
    def counts(self) -> list[tuple[Op, int]]:
        """Each op of the stage, with the number of its layers in the stage."""
        ops: dict[int, Op] = {}
        counts: Counter[int] = Counter()
        for chunk in self.chunks:
            kinds = {id(layer): layer for layer in chunk.layers}
            times = Counter(map(id, chunk.layers))
            for part, count in (
                (chunk.before, 1),
                *((layer, times[key]) for key, layer in kinds.items()),
                (chunk.after, 1),
            ):
                for op in part:
                    ops[id(op)] = op
                    counts[id(op)] += count
        return [(op, counts[key]) for key, op in ops.items()]


def stages(spec: ModelSpec, ops: list[Op], layout: Layout) -> list[Stage]:
    """Divide a model into pipeline stages (see `stage_plan.py`).

    The embedding is in the chunk of the first layer, and the head is in the chunk of the last layer, unless the layout
    says otherwise. An op between the encoder and the decoder is in the chunk of the next layer. Modules for multi-token
    prediction are layers after the last layer. With more than one stage, a tied head gets its own copy of the table.

    Raises LayoutError if the layout does not divide the layers of the model.
    """
    if layout.pp > 1:
        ops = [op if op.stack == "mtp" else _with_own_table(op) for op in ops]
    before, layers, mtp, after = _sequence(spec, ops)
    cut: list[Chunk] = []
    start = done = 0
    for part in chunk_parts(layout, len(layers), len(mtp), name=spec.name):
        inside = (*layers[start : start + part.layers], *mtp[done : done + part.mtp])
        cut.append(Chunk(before if part.embedding else (), inside, after if part.head else (), start))
        start, done = start + part.layers, done + part.mtp
    return [Stage(index, tuple(cut[index :: layout.pp])) for index in range(layout.pp)]


def _with_own_table(op: Op) -> Op:
    """Give a tied head its own copy of the embedding table.

    Megatron and vLLM also store a copy if the embedding and the head are on different stages.
    """
    if not op.tied:
        return op
    if op.kind != "matmul":
        return msgspec.structs.replace(op, tied=False)
    own = op.parameters + op.matmul_elements
    return msgspec.structs.replace(op, tied=False, parameters=own, active_parameters=own)


def _sequence(
    spec: ModelSpec, ops: list[Op]
) -> tuple[tuple[Op, ...], list[tuple[Op, ...]], list[tuple[Op, ...]], tuple[Op, ...]]:
    """Return the ops before the first layer, of each layer, of each multi-token-prediction module, and after them."""
    inside: dict[str, defaultdict[int, list[Op]]] = {name: defaultdict(list) for name in ("encoder", "decoder", "mtp")}
    before: list[Op] = []
    after: list[Op] = []
    seen_decoder = False
    for op in ops:
        if op.layer:
            seen_decoder = seen_decoder or op.stack == "decoder"
            stack = inside[op.stack]
            for index in op.layers:
                stack[index].append(op)
        else:
            (after if seen_decoder else before).append(op)
    encoder, decoder = inside["encoder"], inside["decoder"]
    order = [encoder.get(index, ()) for index in range(len(spec.encoder.order) if spec.encoder else 0)]
    order += [decoder.get(index, ()) for index in range(spec.num_hidden_layers)]
    kinds: dict[tuple[int, ...], tuple[Op, ...]] = {}
    layers = [kinds.setdefault(tuple(map(id, found)), tuple(found)) for found in (*order, *inside["mtp"].values())]
    return tuple(before), layers[: len(order)], layers[len(order) :], tuple(after)


def in_flight(stage: int, layout: Layout, micro_batches: int) -> int:
    """Return the number of chunks whose activations a stage has saved when its first backward pass starts.

    The schedule is 1F1B. Stage s of p stages (s from 0) has p - s micro-batches in flight. With v interleaved chunks,
    it has 2·(p - s - 1) + (v - 1)·g + 1 chunks in flight (Narayanan 2021, section 2.2). The stage runs a chunk for g
    micro-batches before it runs the next chunk, and g is p unless p does not divide the micro-batches. The result is
    never larger than the number of chunks of all micro-batches.
    """
    if layout.interleave == 1:
        return min(micro_batches, layout.pp - stage)
    warm_up = 2 * (layout.pp - stage - 1) + (layout.interleave - 1) * _group(layout.pp, micro_batches)
    return min(micro_batches * layout.interleave, warm_up + 1)


@lru_cache
def _group(pp: int, micro_batches: int) -> int:
    """Return the number of micro-batches for which a stage runs one chunk before it runs the next one.

    Megatron needs at least as many as there are stages, also in the last group (--microbatch-group-size-per-vp-stage).
    """
    sizes = range(pp, micro_batches + 1)
    return next((size for size in sizes if micro_batches % size == 0 or micro_batches % size >= pp), pp)


def chunks_in_flight(stage: int, layout: Layout, micro_batches: int, saved: Sequence[int]) -> list[tuple[int, ...]]:
    """Return, for each chunk of a stage, how often each chunk is in flight besides it when its backward pass runs.

    The numbers belong to that backward pass of the chunk at which the others have saved most. saved: bytes that each
    chunk saves for one micro-batch.
    """
    kinds = layout.interleave
    at_first = in_flight(stage, layout, micro_batches)
    if kinds == 1:
        return [(at_first - 1,)]
    group = _group(layout.pp, micro_batches)
    # Between the warm-up and the last group, which can be smaller, the schedule repeats after each group.
    groups, rest = divmod(micro_batches, group)
    count = group * min(groups, 2 + -(-at_first // (group * kinds))) + rest
    runs = [(chunk, min(group, count - start)) for start in range(0, count, group) for chunk in range(kinds)]
    now, ahead = [0] * kinds, at_first - 1
    forward: list[tuple[int, int]] = []  # what the stage runs forward while it runs backward
    for chunk, length in runs:
        early = min(length, ahead)
        now[chunk] += early
        ahead -= early
        if length > early:
            forward.append((chunk, length - early))
    backward = [(kinds - 1 - chunk, length) for chunk, length in runs]  # in reverse through the chunks
    bytes_now = sum(map(mul, now, saved))
    most: list[tuple[int, ...]] = [(0,) * kinds] * kinds
    most_bytes = [0] * kinds
    for started, finished, length in _side_by_side(forward, backward):
        # While both runs last, the bytes rise or fall evenly, so the first or the last pass has the most.
        change = (0 if started is None else saved[started]) - saved[finished]
        for passes in (1, length - 1):
            now[finished] -= passes
            if started is not None:
                now[started] += passes
            bytes_now += passes * change
            if passes and bytes_now > most_bytes[finished]:
                most[finished], most_bytes[finished] = tuple(now), bytes_now
    return most


def _side_by_side(
    forward: list[tuple[int, int]], backward: list[tuple[int, int]]
) -> Iterator[tuple[int | None, int, int]]:
    """Yield the chunk that runs forward, the one that runs backward, and for how many passes both do.

    forward, backward: chunks with their numbers of passes, in the order of the schedule. The forward passes end first,
    and no chunk (None) runs forward then.
    """
    others = iter(forward)
    started, ahead = next(others, (None, 0))
    for finished, left in backward:
        while left:
            length = left if started is None else min(left, ahead)
            yield started, finished, length
            left -= length
            ahead -= length
            if started is not None and not ahead:
                started, ahead = next(others, (None, 0))
