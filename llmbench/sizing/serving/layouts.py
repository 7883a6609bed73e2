"""The layouts of engines: how a layout is written, and the layouts that llmbench tries on a number of GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from llmbench.errors import LayoutError
from llmbench.sizing.workload import Layout
from llmbench.spec.catalog import DeviceHead
from llmbench.spec.engine import Engine
from llmbench.spec.model import ModelSpec

COUNTS = (1, 2, 4, 8, 16, 32)
"""The numbers of GPUs that are tried."""

SERVER = 8
"""GPUs of one server. Tensor parallelism communicates in every layer, so engines keep it inside a server if they can
(vLLM, docs/serving/parallelism_scaling.md)."""

MOST_STAGES = 8
"""The most pipeline stages that are tried if an engine can also split matrices. With many stages, a token waits for
each of them."""


def serving_layout(text: str) -> Layout:
    """Return the layout of an engine: `tp=8,ep=8` or `dp=8,ep=8`. The experts use the same GPUs as the attention.

    Without `etp`, the matrices of an expert are split over the GPUs that `ep` leaves: tp × dp / ep. Without `ep`, they
    are split over tp × dp GPUs, because replicas of the attention share one copy of the experts (vLLM,
    docs/serving/data_parallel_deployment.md; SGLang, --enable-dp-attention).

    Raises LayoutError for a wrong layout, for items that only training has, or for context parallelism.
    """
    items = dict(item.partition("=")[::2] for item in text.replace(" ", "").split(",") if item)
    for only in ("zero", "instances", "interleave", "sp"):
        if only in items:
            raise LayoutError(
                f"layout {only}: is for training, and an engine does not use it", hint="use tp, pp, dp or ep"
            )
    for only in ("first", "last", "count_embedding", "count_loss", "stages"):
        if only in items:
            raise LayoutError(
                f"layout {only}: an engine divides the layers by a rule of its own", hint="use tp, pp, dp or ep"
            )
    if "cp" in items:
        raise LayoutError(
            "layout cp: llmbench does not size a cache that an engine divides by tokens", hint="use tp, pp, dp or ep"
        )
    if ("ep" in items or "dp" in items) and "etp" not in items:
        sizes = [items.get(name, "1") for name in ("tp", "dp", "ep")]
        if all(size.isascii() and size.isdigit() and 0 < int(size) < 10**6 for size in sizes):
            tp, dp, ep = map(int, sizes)
            if tp * dp % ep:
                raise LayoutError(
                    f"layout ep={ep}: tp × dp = {tp * dp} is not divisible by {ep}",
                    hint="the experts are divided among the GPUs of the attention, for example tp=8,ep=8",
                )
            return Layout.parse(f"{text},etp={tp * dp // ep}")
    return Layout.parse(text)


def layout_text(layout: Layout) -> str:
    """Return the text of the layout of an engine, which `serving_layout` reads: `dp=8,ep=8`."""
    items = [f"{name}={value}" for name in ("tp", "pp", "dp", "ep") if (value := getattr(layout, name)) > 1]
    text = ",".join(items) or str(Layout())
    return text if serving_layout(text).expert_tp == layout.expert_tp else f"{text},etp={layout.expert_tp}"


def counts(engine: Engine, device: DeviceHead) -> tuple[int, ...]:
    """Return the numbers of GPUs that are tried with an engine. A Mac has one GPU.

    Pipeline stages alone divide the layers among any number of GPUs.
    """
    most = 1 if device.vendor == "apple" else engine.spec.most_gpus or COUNTS[-1]
    tried = COUNTS if "tp" in engine.layouts else range(1, most + 1)
    return tuple(count for count in tried if count <= most)


def check_layout(engine: Engine, layout: Layout) -> None:
    """Raise LayoutError if the engine does not divide a model in this way."""
    own, title = engine.spec, engine.spec.title
    for name in ("tp", "dp", "ep"):
        if getattr(layout, name) > 1 and name not in engine.layouts:
            can = ", ".join(engine.layouts)
            raise LayoutError(
                f"layout {name}: {engine.title} does not divide a model in this way",
                hint=f"it divides a model by {can}",
            )
    if 0 < own.most_gpus < layout.num_gpus:
        raise LayoutError(
            f"layout {layout_text(layout)}: {title} uses at most {own.most_gpus} GPUs", hint=f"use pp={own.most_gpus}"
        )
    if own.one_gpu_copies and layout.tp > 1 and layout.dp > 1:
        raise LayoutError(
            f"layout tp={layout.tp},dp={layout.dp}: {title} has one copy of the attention on each GPU",
            hint=f"use dp={layout.tp * layout.dp}, or tp={layout.tp * layout.dp}",
        )
    if own.whole_experts and layout.ep > 1 and layout.expert_tp > 1:
        gpus = layout.tp * layout.dp
        raise LayoutError(
            f"layout ep={layout.ep}: {title} divides the experts among all {gpus} GPUs of the attention, or splits "
            "each of them",
            hint=f"use ep={gpus}, or leave out ep",
        )


class Kind(NamedTuple):
    """A way to divide a model among GPUs. name: what it combines. layouts: its layouts, the largest tp first."""

    name: str
    layouts: tuple[str, ...]


def kinds(spec: ModelSpec, engine: Engine, gpus: int) -> list[Kind]:
    """Return the ways to divide a model among `gpus` GPUs that llmbench tries with an engine, in their order.

    Tensor parallelism inside one server comes first, then data parallelism, then pipeline stages, and then tensor
    parallelism over several servers. The experts of a mixture are split too, or each GPU has some whole experts.
    """
    own = engine.layouts
    splits = [tp for tp in range(min(gpus, SERVER), 0, -1) if gpus % tp == 0 and (tp == 1 or "tp" in own)]
    parts = [(tp, gpus // tp) for tp in splits if tp < gpus]
    experts = spec.is_moe and "ep" in own
    whole = [Kind("tp", (f"tp={gpus}",))] if "tp" in own else []
    whole += [Kind("tp × ep", (f"tp={gpus},ep={gpus}",))] if whole and experts else []
    found = whole if gpus <= SERVER else []
    if "dp" in own and engine.spec.one_gpu_copies:
        found = [*found, *([Kind("dp × ep", (f"dp={gpus},ep={gpus}",))] if experts else [])]
    elif "dp" in own:
        several = f",ep={gpus}" if experts else ""
        title = "tp × dp × ep" if experts else "tp × dp"
        found = [*found, Kind(title, tuple(f"tp={tp},dp={dp}{several}" for tp, dp in parts))]
    if "pp" in own:
        only = "tp" not in own
        stages = [f"tp={tp},pp={pp}" for tp, pp in parts if only or pp <= MOST_STAGES]
        found = [*found, Kind("pp" if only else "tp × pp", tuple(stages))]
    return found + (whole if gpus > SERVER else [])


def layouts(spec: ModelSpec, engine: Engine, gpus: int) -> Iterator[Layout]:
    """Return the layouts of `kinds`. One GPU has one layout."""
    if gpus == 1:
        yield Layout()
        return
    for kind in kinds(spec, engine, gpus):
        yield from map(serving_layout, kind.layouts)
