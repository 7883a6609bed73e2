"""Pipeline stages: cutting a model into them, and the micro-batches that a stage has in flight."""

from __future__ import annotations

import msgspec

from llmbench.errors import LayoutError
from llmbench.sizing.op import Op
from llmbench.sizing.workload import Layout
from llmbench.spec.model import ModelSpec


class Chunk(msgspec.Struct, frozen=True):
    """Consecutive layers on one GPU: the ops of each layer, and those before the first and after the last layer."""

    before: tuple[Op, ...]
    layers: tuple[tuple[Op, ...], ...]
    after: tuple[Op, ...]

    @property
    def ops(self) -> list[Op]:
        """Every instance of every op, first to last."""
        return [*self.before, *(op for layer in self.layers for op in layer), *self.after]


class Stage(msgspec.Struct, frozen=True):
    """One pipeline stage: its chunks of layers (one, or `interleave` of them)."""

    index: int
    chunks: tuple[Chunk, ...]

    @property
    def ops(self) -> list[Op]:
        """Every instance of every op of this GPU."""
        return [op for chunk in self.chunks for op in chunk.ops]


def stages(spec: ModelSpec, ops: list[Op], layout: Layout) -> list[Stage]:
    """The stages of a model. Layers are spread evenly; earlier chunks get the remainder.

    The embedding (and an encoder's end) are with the layer that follows them, the head is with the last layer. With
    more than one stage, a tied head has a copy of the table. Raises LayoutError if there are more chunks than layers.
    """
    if layout.pp > 1 and spec.tie_word_embeddings:
        ops = [_with_own_table(op) for op in ops]
    before, layers, after = _sequence(spec, ops)
    chunks = layout.pp * layout.interleave
    if chunks > len(layers):
        what = f"pp × interleave = {chunks}" if layout.interleave > 1 else f"pp={layout.pp}"
        raise LayoutError(f"layout {what}: more than the {len(layers)} layers of {spec.name}")
    size, rest = divmod(len(layers), chunks)
    cut: list[Chunk] = []
    start = 0
    for index in range(chunks):
        end = start + size + (index < rest)
        last = index == chunks - 1
        cut.append(Chunk(before if index == 0 else (), tuple(layers[start:end]), after if last else ()))
        start = end
    return [Stage(index, tuple(cut[index :: layout.pp])) for index in range(layout.pp)]


def _with_own_table(op: Op) -> Op:
    """A tied head with a copy of the table, as Megatron and vLLM have on another stage than the embedding's."""
    if not op.tied:
        return op
    if op.kind != "matmul":
        return msgspec.structs.replace(op, tied=False)
    own = op.parameters + op.matmul_elements
    return msgspec.structs.replace(op, tied=False, parameters=own, active_parameters=own)


def _sequence(spec: ModelSpec, ops: list[Op]) -> tuple[tuple[Op, ...], list[tuple[Op, ...]], tuple[Op, ...]]:
    """The ops before the first layer, those of each layer, and those after the last."""
    inside: dict[tuple[str, int], list[Op]] = {}
    before: list[Op] = []
    after: list[Op] = []
    seen_decoder = False
    for op in ops:
        if op.layer:
            seen_decoder = seen_decoder or op.stack == "decoder"
            for index in op.layers:
                inside.setdefault((op.stack, index), []).append(op)
        else:
            (after if seen_decoder else before).append(op)
    order = [("encoder", index) for index in range(len(spec.encoder.order) if spec.encoder else 0)]
    order += [("decoder", index) for index in range(spec.num_hidden_layers)]
    return tuple(before), [tuple(inside.get(place, ())) for place in order], tuple(after)


def in_flight(stage: int, layout: Layout, micro_batches: int) -> int:
    """Chunks whose activations a stage has saved when its first backward starts (1F1B).

    Stage s of p has p - s micro-batches; interleaved with v chunks, 2·(p - s - 1) + (v - 1)·p + 1 chunks (Narayanan
    2021, section 2.2); at most all of them.
    """
    if layout.interleave == 1:
        return min(micro_batches, layout.pp - stage)
    warm_up = 2 * (layout.pp - stage - 1) + (layout.interleave - 1) * layout.pp
    return min(micro_batches * layout.interleave, warm_up + 1)
