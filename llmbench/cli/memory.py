"""`llmbench memory`: what one GPU holds while training or serving, and which devices have room for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from llmbench.cli.options import As, OneModel, Output, Seq, Set, answer, approximate_lines, load, title
from llmbench.report.describe import headline
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import billions, size
from llmbench.sizing.memory import CONTEXT_BYTES, PARTS, Memory, inference_memory, training_memory
from llmbench.sizing.recipe import Optimizer, PrecisionName
from llmbench.sizing.workload import Layout, Recompute
from llmbench.spec.catalog import device_rooms
from llmbench.spec.mixer import Attention, CompressedAttention, LatentAttention, branches
from llmbench.spec.model import ModelSpec

OfPhase = Annotated[Literal["train", "inference"], typer.Option("--phase", help="A training step, or serving.")]
Micro = Annotated[
    int,
    typer.Option(
        "--batch",
        "--micro-batch",
        metavar="N",
        help="Sequences at once: of a micro-batch, or served together.",
        min=1,
        max=2**31,
    ),
]
Held = Annotated[
    PrecisionName | None,
    typer.Option(
        "--precision",
        help="How numbers are held; mixed (training) or bf16 (inference) unless given.",
        show_default=False,
    ),
]
Opt = Annotated[Optimizer, typer.Option("--optimizer", help="Whose states are kept.")]
Again = Annotated[Recompute, typer.Option("--recompute", help="What backward computes again instead of keeping.")]
Spread = Annotated[
    str,
    typer.Option(
        "--layout",
        metavar="LAYOUT",
        help="As in tp=8,sp,pp=8,interleave=3,dp=2,ep=8,cp=1,zero=1.",
        show_default=False,
    ),
]
Kernels = Annotated[
    Literal["fused", "eager", "standard"],
    typer.Option("--kernels", help="fused and flash; plain torch with flash; plain torch that holds the scores."),
]


def command(
    model: OneModel,
    phase: OfPhase = "train",
    seq: Seq = 4096,
    batch: Micro = 1,
    precision: Held = None,
    optimizer: Opt = "adamw",
    recompute: Again = "none",
    layout: Spread = "",
    kernels: Kernels = "fused",
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Peak memory of a GPU, and the devices that hold it.

    A training step is followed op by op through its backward; the fullest pipeline stage is shown.

    Examples:

      llmbench memory llama2-7b

      llmbench memory llama2-7b --recompute full --optimizer adamw-8bit

      llmbench memory llama3-70b --layout tp=8,sp,pp=4,dp=2,zero=1 --seq 8192

      llmbench memory llama3-70b --phase inference --precision fp8 --batch 32 --layout tp=4

      llmbench memory deepseek-v3 --layout pp=16,ep=64,dp=128,zero=1 --recompute full --format json
    """
    spec = load(model, set)
    spread = Layout.parse(layout)
    if phase == "train":
        memory = training_memory(
            spec,
            seq,
            micro_batch=batch,
            layout=spread,
            precision=precision or "mixed",
            optimizer=optimizer,
            recompute=recompute,
            kernels="fused" if kernels == "fused" else "eager",
            attention="standard" if kernels == "standard" else "flash",
        )
    else:
        memory = inference_memory(spec, seq, batch=batch, layout=spread, precision=precision or "bf16")
    row = {
        "model": spec.name,
        "approximate": bool(spec.approximate),
        "approximate_because": list(spec.approximate),
        "phase": phase,
        "seq_len": seq,
        "micro_batch": batch,
        "layout": str(spread),
        "num_gpus": spread.num_gpus,
        "peak_bytes": memory.peak_bytes,
        "parts_bytes": memory.parts_bytes,
        "held_bytes": memory.held_bytes,
        "reserved_bytes": memory.reserved_bytes,
        "context_bytes": CONTEXT_BYTES,
        "moment": memory.moment,
        "stage": memory.stage,
        "stage_peak_bytes": list(memory.stage_peaks),
        "fits_on": fitting(memory),
    }
    document = Document(
        command="memory",
        inputs={
            "model": model,
            "phase": phase,
            "seq_len": seq,
            "micro_batch": batch,
            "precision": precision,
            "optimizer": optimizer,
            "recompute": recompute,
            "layout": layout,
            "kernels": kernels,
            "set": set or [],
        },
        rows_key="models",
        rows=[row],
        blocks=[_block(spec, memory, spread)] if format != "json" else [],
    )
    answer(document, format, output)


def fitting(memory: Memory) -> list[str]:
    """Bundled devices with room for it, smallest first."""
    return [name for name, room in device_rooms() if room >= memory.needed_bytes]


_WHAT = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer and master weights",
    "activations": "activations",
    "logits": "logits and loss",
    "kv_cache": "KV cache and states",
    "overhead": "library workspaces",
}


def _block(spec: ModelSpec, memory: Memory, layout: Layout) -> Block:
    rows: list[list[Any]] = [
        [
            _WHAT[part],
            memory.parts_bytes[part],
            memory.parts_bytes[part] / memory.peak_bytes,
            memory.held_bytes.get(part),
        ]
        for part in PARTS
        if memory.parts_bytes[part] or memory.held_bytes.get(part)
    ]
    rows.append(["peak", memory.peak_bytes, 1.0, ""])
    columns = [
        Column("part"),
        Column("at the peak (GiB)", "gib"),
        Column("share", "percent"),
        Column("when complete (GiB)", "gib"),
    ]
    what = "training step" if memory.phase == "train" else "serving"
    gpus = f"{layout.num_gpus} GPUs: {layout}" if layout.num_gpus > 1 else "one GPU"
    context = f"{what} · {memory.seq_len:,} tokens · batch {memory.micro_batch} · {gpus}"
    return Block(
        subject=title(spec),
        headline=f"{headline(spec)}\n{context}",
        table=Table(columns=columns, rows=rows, total=True),
        lines=[*_lines(spec, memory, layout), *approximate_lines(spec)],
    )


def _lines(spec: ModelSpec, memory: Memory, layout: Layout) -> list[str]:
    lines = []
    stage = f", in stage {memory.stage + 1} of {layout.pp}" if layout.pp > 1 else ""
    if memory.phase == "train":
        lines.append(f"the peak falls in the backward of {memory.moment.replace('{}.', 'N.')}{stage}")
        inference = 2 * memory.parameters
        lines.append(
            f"{memory.peak_bytes / inference:.1f}× the bf16 weights of this GPU ({size(inference)}, "
            f"{billions(memory.parameters)} parameters); the textbook says 12–16×"
        )
    elif stage:
        lines.append(f"the fullest GPU is{stage[4:]}")
    names = fitting(memory)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} larger" if len(names) > 8 else "")
    lines.append(
        f"with {size(CONTEXT_BYTES)} of CUDA context {size(memory.needed_bytes)}: "
        + (f"fits on {shown}" if names else "fits on no bundled device")
    )
    if memory.phase == "train" and _is_recurrent(spec):
        lines.append("approximate: what recurrent kernels save for backward differs between implementations")
    return lines


def _is_recurrent(spec: ModelSpec) -> bool:
    mixers = [mixer for layer in spec.layers.values() for mixer in branches(layer.mixer)]
    return any(not isinstance(mixer, (Attention, LatentAttention, CompressedAttention)) for mixer in mixers)
