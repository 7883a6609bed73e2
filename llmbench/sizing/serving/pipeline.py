"""How an engine divides the layers of a model over pipeline stages."""

from __future__ import annotations

import msgspec

from llmbench.sizing.workload import Layout
from llmbench.spec.engine import Remainder


def layers_per_stage(layers: int, stages: int, remainder: Remainder) -> list[int]:
    """Return the number of layers of each stage.

    remainder: which stages get the layers that remain after an even division (see `Remainder`).
    """
    if remainder == "head":
        # llama.cpp places layer i of L layers on the stage whose share of the memory contains i / (L + 1), and the head
        # is layer L (src/llama-model.cpp, get_layer_buft_list).
        ends = [min(layers, -(-(stage + 1) * (layers + 1) // stages)) for stage in range(stages)]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]
    counts = [layers // stages] * stages
    rest = layers % stages
    if remainder == "one":
        counts[-1] += rest
        return counts
    first = {"first": 0, "last": stages - rest, "before last": stages - 1 - rest}[remainder]
    return [count + (first <= stage < first + rest) for stage, count in enumerate(counts)]


def divided(layout: Layout, layers: int, mtp: int, remainder: Remainder) -> Layout:
    """Return a layout that says which layers each pipeline stage has. Modules for multi-token prediction come last.

    A layout with more stages than layers is returned as it is.
    """
    if not 1 < layout.pp <= layers:
        return layout
    chunks = [f"t*{count}" for count in layers_per_stage(layers, layout.pp, remainder)]
    chunks[0] = f"E{chunks[0]}"
    chunks[-1] += f"m*{mtp}L"
    return msgspec.structs.replace(layout, stages="|".join(chunks))
