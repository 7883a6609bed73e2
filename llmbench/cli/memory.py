"""`llmbench memory`: what one GPU holds while training or serving, and which devices have room for it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from llmbench.cli.options import (
    SEQ,
    As,
    CacheType,
    OneModel,
    Output,
    Seq,
    Set,
    answer,
    approximate_lines,
    length_notes,
    load,
    title,
)
from llmbench.errors import LLMBenchError
from llmbench.report.describe import headline
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import billions, plural, size
from llmbench.sizing.memory import CONTEXT_BYTES, PARTS, Memory, inference_memory
from llmbench.sizing.recipe import Optimizer, PrecisionName, training_precision
from llmbench.sizing.training import training_memory
from llmbench.sizing.workload import Layout, Recompute
from llmbench.spec.catalog import device_rooms
from llmbench.spec.model import ModelSpec

OfPhase = Annotated[Literal["train", "inference"], typer.Option("--phase", help="A training step, or serving.")]
Micro = Annotated[
    int,
    typer.Option(
        "--batch",
        "--micro-batch",
        metavar="N",
        help="Sequences at once, of each data-parallel replica: of a micro-batch, or served together.",
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
CacheHeld = Annotated[
    CacheType | None,
    typer.Option("--kv-dtype", help="Format of the cache (inference); bf16 unless given.", show_default=False),
]


def command(
    model: OneModel,
    phase: OfPhase = "train",
    seq: Seq = SEQ,
    batch: Micro = 1,
    precision: Held = None,
    optimizer: Opt = "adamw",
    recompute: Again = "none",
    layout: Spread = "",
    kernels: Kernels = "fused",
    kv_dtype: CacheHeld = None,
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
    spread = Layout.parse(layout)
    _refuse_what_does_nothing(phase, optimizer, recompute, kernels, kv_dtype, spread)
    spec = load(model, set)
    chosen: PrecisionName = precision or ("mixed" if phase == "train" else "bf16")
    if phase == "train":
        memory = training_memory(
            spec,
            seq,
            micro_batch=batch,
            layout=spread,
            precision=chosen,
            optimizer=optimizer,
            recompute=recompute,
            kernels="fused" if kernels == "fused" else "eager",
            attention="standard" if kernels == "standard" else "flash",
        )
    else:
        memory = inference_memory(spec, seq, batch=batch, layout=spread, precision=chosen, kv_dtype=kv_dtype or "bf16")
    training = phase == "train"
    row = {
        "model": spec.name,
        "approximate": bool(spec.approximate or memory.approximate),
        "approximate_because": [*spec.approximate, *memory.approximate],
        "notes": [*spec.notes, *length_notes(spec, seq)],
        "phase": phase,
        "seq_len": seq,
        "micro_batch": batch,
        "batch_is": _batch_is(memory),
        "precision": chosen,
        "optimizer": optimizer if training else None,
        "recompute": recompute if training else None,
        "kernels": kernels if training else None,
        "kv_dtype": None if training else kv_dtype or "bf16",
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
            "kv_dtype": kv_dtype,
            "set": set or [],
        },
        rows_key="models",
        rows=[row],
        blocks=[_block(spec, memory, row)] if format != "json" else [],
    )
    answer(document, format, output)


def _refuse_what_does_nothing(
    phase: str, optimizer: str, recompute: str, kernels: str, kv_dtype: str | None, layout: Layout
) -> None:
    """Options of the other phase would change no figure; to say so is better than to be silent."""
    if phase == "train":
        if kv_dtype is not None:
            raise LLMBenchError(
                f"--kv-dtype {kv_dtype} is for serving: a training step keeps no cache",
                hint="leave it out, or ask for --phase inference",
            )
        return
    for option, given, default in (
        ("optimizer", optimizer, "adamw"),
        ("recompute", recompute, "none"),
        ("kernels", kernels, "fused"),
    ):
        if given != default:
            raise LLMBenchError(
                f"--{option} {given} is for training and changes nothing in --phase inference",
                hint="leave it out, or ask for --phase train",
            )
    if layout.zero:
        raise LLMBenchError(
            f"layout zero={layout.zero}: ZeRO splits the state of training, and serving has none",
            hint="leave it out; tp, pp and ep split the weights of a served model",
        )


def _batch_is(memory: Memory) -> str:
    """What --batch counts."""
    each = "of each data-parallel replica"
    return f"sequences of a micro-batch {each}" if memory.phase == "train" else f"sequences served at once {each}"


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


def _block(spec: ModelSpec, memory: Memory, row: dict[str, Any]) -> Block:
    rows: list[list[Any]] = [
        [
            _WHAT[part],
            memory.parts_bytes[part],
            memory.parts_bytes[part] / memory.peak_bytes,
            None if part == "weights" and _shards_only(memory) else memory.held_bytes.get(part),
        ]
        for part in PARTS
        if memory.parts_bytes[part] or memory.held_bytes.get(part)
    ]
    rows.append(["peak", memory.peak_bytes, 1.0, ""])
    columns = [
        Column("part"),
        Column("at the peak", "gib"),
        Column("share", "percent"),
        Column("when complete", "gib"),
    ]
    approximate = bool(memory.approximate)
    return Block(
        subject=title(spec, approximate=approximate),
        headline="\n".join([headline(spec, approximate=approximate), *_context(memory, row)]),
        table=Table(columns=columns, rows=rows, total=True),
        lines=[
            *_lines(memory),
            *(f"approximate: {reason}" for reason in memory.approximate),
            *approximate_lines(spec),
        ],
        notes=length_notes(spec, memory.seq_len),
    )


def _shards_only(memory: Memory) -> bool:
    """FSDP with an fp32 master copy: no other weights are kept, bf16 ones are gathered to compute."""
    return memory.layout.zero == 3 and not memory.held_bytes["weights"]


def _context(memory: Memory, row: dict[str, Any]) -> list[str]:
    """What was asked, and what is assumed of it."""
    layout = memory.layout
    gpus = f"{layout.num_gpus:,} GPUs: {layout}" if layout.num_gpus > 1 else "one GPU"
    tokens, batch = plural(memory.seq_len, "token"), f"{memory.micro_batch:,}"
    each = " of each replica" if layout.dp > 1 else ""
    if memory.phase == "inference":
        formats = f"weights {row['precision']} · cache {row['kv_dtype']}"
        return [f"serving · {tokens} · batch {batch}{each} · {gpus}", formats]
    recipe = training_precision(row["precision"])
    formats = f"weights {recipe.weights}, gradients {recipe.gradients}"
    if layout.zero == 3 and recipe.master and recipe.gradients != "fp32":
        formats += " (fp32 once reduced)"
    formats += ", master weights fp32" if recipe.master else ", no master copy"
    again = "nothing recomputed" if row["recompute"] == "none" else f"recompute {row['recompute']}"
    kernels = {
        "fused": "fused kernels, flash attention",
        "eager": "plain torch, flash attention",
        "standard": "plain torch, scores held",
    }[row["kernels"]]
    return [
        f"training step · {tokens} · micro-batch {batch}{each} · {gpus}",
        f"{row['precision']} precision: {formats} · {row['optimizer']} · {again} · {kernels}",
    ]


def _lines(memory: Memory) -> list[str]:
    layout = memory.layout
    lines = []
    stage = f", in stage {memory.stage + 1} of {layout.pp}" if layout.pp > 1 else ""
    if memory.phase == "train":
        moment = memory.moment.replace("{}.", "N.")
        where = "the optimizer's step" if moment == "optimizer" else f"the backward of {moment}"
        lines.append(f"the peak falls in {where}{stage}")
        if layout.pp > 1:
            lines.append("the pipeline is full: twice as many micro-batches as stages")
        if layout.zero == 3:
            if _shards_only(memory):
                lines.append(
                    "weights when complete: fp32 shards, counted with the optimizer; at the peak those gathered"
                )
        else:
            weights = 2 * memory.parameters
            lines.append(
                f"{memory.peak_bytes / weights:.1f}× the bf16 weights of this GPU ({size(weights)}, "
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
    return lines
