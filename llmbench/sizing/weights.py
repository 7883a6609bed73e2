"""Bytes of the weights as they are stored: in the files of a checkpoint, and in the memory of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from llmbench.sizing.dtypes import Tensors, bits_of
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.params import count_parameters
from llmbench.sizing.stored_tensors import (
    NEXT_TOKEN_PREDICTION,
    ONE_TOKEN,
    instances_bytes,
    next_token_prediction_bytes,
    stored_tensors,
)
from llmbench.sizing.weight_recipe import WeightRecipe
from llmbench.sizing.workload import Layout
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.sizing.stages import Stage
    from llmbench.spec.weights.formats import Chosen


class StoredWeights(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of the weights in the files of a checkpoint.

    format: the format as `--weights` accepts it. title: its description.
    total_bytes: bytes of all tensors. The headers of the files are not included.
    components: bytes of each component, buffers included, of the multi-token-prediction modules, and of the parts for
        other modalities than text.
    doubts: why the bytes may be inexact.
    """

    format: str
    title: str
    total_bytes: int
    components: dict[str, int]
    doubts: tuple[str, ...] = ()


def stored_weights(
    spec: ModelSpec,
    text: str | None = None,
    *,
    layout: Layout | None = None,
    loaded: bool = False,
    recipe: WeightRecipe | None = None,
) -> StoredWeights:
    """Compute the bytes of the weights of a model, or of one GPU of a layout, without pipeline stages.

    text: a format such as `gptq,bits=8`. None: the format of the published files. loaded: whether the weights are in
        the memory of an engine, which does not load the multi-token-prediction modules. recipe: the recipe of `text`,
        if it exists already, so that no file is read twice.

    Raises UnsupportedError if the format of the published files is not known, and UnknownNameError or SpecError for a
    wrong text.
    """
    recipe = WeightRecipe(spec, text) if recipe is None else recipe
    parallel = layout or Layout()
    components: dict[str, int] = {}
    for op in lower(spec, ONE_TOKEN, parallel):
        if op.parameters or op.buffers:
            stored = instances_bytes(op, recipe, loaded=loaded)
            components[op.component] = components.get(op.component, 0) + stored
    if recipe.files is not None and not loaded:
        for part, stored in recipe.files.others.items():
            components[part] = components.get(part, 0) + stored
    else:
        predicted = 0 if loaded else next_token_prediction_bytes(spec, recipe, parallel)
        if predicted:
            components[NEXT_TOKEN_PREDICTION] = predicted
        components |= {tensors.kind: tensors.bytes for tensors in recipe.towers(parallel.tp)}
    return StoredWeights(
        format=recipe.text,
        title=recipe.title,
        total_bytes=sum(components.values()),
        components=components,
        doubts=recipe.doubts,
    )


def stage_tensors(stage: Stage, recipe: WeightRecipe, tp: int) -> Iterator[tuple[Tensors, int]]:
    """Yield the tensors that an engine loads for a pipeline stage, each with the number of its copies in the stage.

    The parts for other modalities than text are in the first stage. tp: number of GPUs that split them.
    """
    if stage.index == 0:
        yield from ((tensors, 1) for tensors in recipe.towers(tp))
    if not recipe.by_module:
        placed = [(op, op.layers[0] if op.layers else None, count) for op, count in stage.counts]
    else:
        placed = [(op, None, 1) for chunk in stage.chunks for op in (*chunk.before, *chunk.after)]
        for chunk in stage.chunks:
            for index, layer in enumerate(chunk.layers, chunk.first_layer - recipe.encoder_layers):
                placed += [(op, index + (recipe.encoder_layers if op.stack == "encoder" else 0), 1) for op in layer]
    for op, place, count in placed:
        for tensor in recipe.tensors(op, place, loaded=True):
            yield tensor, count


def bits_per_element(form: Chosen) -> float:
    """Return the stored bits per element of a matrix with 4,096 inputs and outputs."""
    if form.format.gguf is not None:
        from llmbench.spec.weights.gguf import BLOCKS  # only `specs list --formats` needs it

        elements, size = BLOCKS[form.format.gguf.base]
        return 8 * size / elements
    op = Op(name="matrix", component="mlp", kind="matmul", parameters=4096**2, matrix=(1, 4096, 4096))
    plain = bits_of(form.format.plain or "bf16")
    return 8 * sum(tensor.bytes for tensor in stored_tensors(op, form.storage(), plain)) / op.parameters


def bits_per_weight(spec: ModelSpec, text: str) -> float:
    """Return the stored bits of all tensors of a model in a format, divided by the parameters of the model."""
    return 8 * stored_weights(spec, text).total_bytes / count_parameters(spec).total
