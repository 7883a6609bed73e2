"""Blocks of quantised weights that an engine does not split among GPUs."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from llmbench.errors import LayoutError
from llmbench.sizing.lower import lower
from llmbench.sizing.op import Op
from llmbench.sizing.serving.layouts import layout_text
from llmbench.sizing.weight_recipe import WeightRecipe
from llmbench.sizing.workload import Layout, Workload
from llmbench.spec.engine import Engine, WholeBlocks
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.spec.weights.formats import Storage


def check_blocks(
    spec: ModelSpec, workload: Workload, engine: Engine, layout: Layout, ops: Iterable[Op], recipe: WeightRecipe
) -> None:
    """Raise LayoutError if the layout splits a block of inputs that the engine keeps whole. ops: those of one GPU."""
    if not engine.spec.whole_blocks or (layout.tp == 1 and layout.expert_tp == 1):
        return
    every = {(op.name, op.layer): op.matrix[1] for op in lower(spec, workload) if op.matrix is not None}
    for op in ops:
        if op.matrix is None or op.matrix[1] == every[op.name, op.layer]:
            continue
        own, inputs = op.matrix[1], every[op.name, op.layer]
        for storage in {recipe.storage(op, layer) for layer in op.layers or (None,)}:
            rule = None if storage is None else _rule(engine, op, storage)
            if storage is None or rule is None:
                continue
            block = _block(storage)
            while own % block and block > rule.halved_to > 0:
                block //= 2
            if own % block:
                raise _refusal(engine, layout, op, own, inputs, block, storage.name)


def _rule(engine: Engine, op: Op, storage: Storage) -> WholeBlocks | None:
    """Return the rule of the engine for the matrices of an op, or None."""
    for rule in engine.spec.whole_blocks:
        named = any(fnmatchcase(storage.name, pattern) for pattern in rule.formats)
        if named and rule.experts == (op.component == "experts"):
            return rule
    return None


def _block(storage: Storage) -> int:
    """Return the number of inputs that share a scale, or 1 if all inputs of an output share it."""
    return max((tensor.inputs for tensor in storage.tensors), default=1) or 1


def _refusal(
    engine: Engine, layout: Layout, op: Op, own: int, inputs: int, block: int, format_name: str
) -> LayoutError:
    experts = op.component == "experts"
    parts = layout.expert_tp if experts else layout.tp
    whole = next(
        (count for count in range(parts - 1, 1, -1) if parts % count == 0 and inputs % (count * block) == 0), 1
    )
    ways = [] if experts and layout.dp > 1 else [f"tp={whole}" if whole > 1 else "no tp"]
    if experts and "ep" in engine.layouts:
        ways.insert(0, f"ep={layout.tp * layout.dp}, which keeps each expert whole")
    name = op.name.rpartition("}.")[2]
    return LayoutError(
        f"layout {layout_text(layout)}: a GPU would have {own:,} of the {inputs:,} inputs of {name}, and "
        f"{engine.spec.title} does not split a block of {block} inputs of weights in {format_name}",
        hint=f"use {', or '.join(ways) or 'fewer GPUs'}",
    )
