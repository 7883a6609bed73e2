"""Answers of `llmbench memory`: the memory that one GPU needs, as rows and tables."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from llmbench.answers.about import MODEL_FIELDS, AboutModel, model_block, sweep_fields
from llmbench.errors import LLMBenchError
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, inside, records
from llmbench.report.units import billions, plural, size
from llmbench.sizing.dtypes import DType
from llmbench.sizing.memory import CONTEXT_BYTES, PARTS, Memory, inference_memory
from llmbench.sizing.recipe import Optimizer, PrecisionName, training_precision
from llmbench.sizing.training import training_memory
from llmbench.sizing.workload import Layout, Recompute
from llmbench.spec.catalog import device_memories
from llmbench.spec.model import ModelSpec

Phase = Literal["train", "inference"]
Kernels = Literal["fused", "eager", "standard"]
"""The kernels of a training step. See the help of `llmbench memory --kernels`."""


class Sized(AboutModel, kw_only=True):
    """A model, the memory that one GPU needs for it, and the options of the command.

    An option that has no effect in the chosen phase is None.
    """

    memory: Memory
    precision: PrecisionName
    optimizer: Optimizer | None
    recompute: Recompute | None
    kernels: str | None
    kv_dtype: DType | None


FIELDS: tuple[Field[Sized], ...] = (
    *MODEL_FIELDS,
    *inside(
        "memory",
        Field("phase", description="value of `--phase`: `train` or `inference`"),
        Field("seq_len", description="value of `--seq`: tokens per sequence"),
        Field("micro_batch", description="value of `--batch`: number of sequences"),
    ),
    Field(
        "batch_is",
        value=lambda row: _batch_is(row.memory),
        description="text that says which sequences `micro_batch` counts",
    ),
    Field("precision", description="value of `--precision`, or the default of the phase"),
    Field("optimizer", description="value of `--optimizer`; null in inference"),
    Field("recompute", description="value of `--recompute`; null in inference"),
    Field("kernels", description="value of `--kernels`; null in inference"),
    Field("kv_dtype", description="value of `--kv-dtype`, or its default; null in training"),
    *inside(
        "memory",
        Field(
            "layout", value=lambda row: str(row.memory.layout), description="value of `--layout`: the parallel layout"
        ),
        Field("num_gpus", value=lambda row: row.memory.layout.num_gpus, description="number of GPUs of the layout"),
        Field(
            "peak_bytes",
            "peak",
            "gib",
            description="peak memory of a training step or of serving, on the GPU with the highest peak",
        ),
        Field(
            "parts_bytes",
            description="bytes of each part at the peak: `weights`, `gradients`, `optimizer`, `activations`, `logits`, "
            "`kv_cache`, `overhead`; they add up to `peak_bytes`",
        ),
        Field(
            "full_bytes",
            description="bytes of all weights, gradients and optimizer states, and of the activations at the start of "
            "the backward pass. Not all of these bytes exist at the peak. With `zero=3` and a master copy, `weights` "
            "is 0, because the fp32 shards count as `optimizer`",
        ),
        Field("reserved_bytes", description="memory that PyTorch's allocator reserves on the device"),
        Field(
            "context_bytes",
            value=lambda row: CONTEXT_BYTES,
            description="memory of a CUDA context; not part of `reserved_bytes`",
        ),
        Field(
            "moment",
            description="work that runs at the peak: the op whose backward pass runs, or `optimizer`, or `prefill`",
        ),
        Field("stage", description="index of the pipeline stage with the highest peak; the first stage is 0"),
        Field(
            "stage_peak_bytes",
            value=lambda row: list(row.memory.stage_peaks),
            description="peak memory of each pipeline stage",
        ),
        Field(
            "fits_on",
            value=lambda row: fitting(row.memory),
            description="devices of `llmbench specs list --devices` whose memory is at least `reserved_bytes` + "
            "`context_bytes`, smallest first",
        ),
    ),
)


def sized(
    spec: ModelSpec,
    *,
    phase: Phase = "train",
    seq: int = 4096,
    batch: int = 1,
    precision: PrecisionName | None = None,
    optimizer: Optimizer = "adamw",
    recompute: Recompute = "none",
    layout: str = "",
    kernels: Kernels = "fused",
    kv_dtype: DType | None = None,
) -> Sized:
    """Return a model with the memory that one GPU needs for it.

    Raises LLMBenchError for a layout that is not valid, and for an option that has no effect in the phase.
    """
    parallel = Layout.parse(layout)
    _refuse_options_of_the_other_phase(phase, optimizer, recompute, kernels, kv_dtype, parallel)
    training = phase == "train"
    chosen: PrecisionName = precision or ("mixed" if training else "bf16")
    if training:
        memory = training_memory(
            spec,
            seq,
            micro_batch=batch,
            layout=parallel,
            precision=chosen,
            optimizer=optimizer,
            recompute=recompute,
            kernels="fused" if kernels == "fused" else "eager",
            attention="standard" if kernels == "standard" else "flash",
        )
    else:
        memory = inference_memory(
            spec, seq, batch=batch, layout=parallel, precision=chosen, kv_dtype=kv_dtype or "bf16"
        )
    return Sized(
        spec=spec,
        doubts=memory.approximate,
        tokens=seq,
        memory=memory,
        precision=chosen,
        optimizer=optimizer if training else None,
        recompute=recompute if training else None,
        kernels=kernels if training else None,
        kv_dtype=None if training else kv_dtype or "bf16",
    )


def document(rows: list[Sized], inputs: dict[str, Any], *, tables: bool = True) -> Document:
    """Return the answer for some models. `inputs`: the options. `tables`: whether people will read it."""
    return Document(
        command="memory",
        version=2,
        inputs=inputs,
        rows_key="models",
        rows=records(FIELDS, rows),
        blocks=_blocks(rows) if tables else [],
    )


def _blocks(rows: list[Sized]) -> list[Block]:
    """Return the parts of the peak of one workload, or a table with a row per length and batch of a sweep."""
    if len(rows) == 1:
        return [_block(rows[0])]
    first = rows[0]
    names = _part_names(first.memory)

    def part(name: str, spare: int) -> Field[Sized]:
        def value(row: Sized) -> int:
            return row.memory.parts_bytes[name]

        return Field(f"{name}_bytes", names[name], "gib", value, in_json=False, spare=spare)

    # A narrow terminal leaves out the smallest parts first.
    parts = [name for name in PARTS if any(row.memory.parts_bytes[name] for row in rows)]
    by_size = sorted(parts, key=lambda name: -max(row.memory.parts_bytes[name] for row in rows))
    # The headline names the model, so the table has no column for it. CSV has the model and the notes of each row.
    fields = (msgspec.structs.replace(FIELDS[0], heading=None), *FIELDS[1:])
    columns = (
        *sweep_fields(fields, rows, {"seq_len": "tokens", "micro_batch": "batch"}),
        *(part(name, 1 + by_size.index(name)) for name in parts),
        Field[Sized]("smallest", "smallest device", value=_smallest, in_json=False),
    )
    same_tokens = all(row.memory.seq_len == first.memory.seq_len for row in rows)
    same_batch = all(row.memory.micro_batch == first.memory.micro_batch for row in rows)
    block = model_block(
        first,
        context=_context(first, tokens=same_tokens, batch=same_batch),
        table=table(columns, rows),
        lines=[
            "smallest device: the built-in device with the least memory that is enough for the peak and a CUDA context "
            f"of {size(CONTEXT_BYTES)}"
        ],
    )
    block.about = {}
    block.notes = list(dict.fromkeys(note for row in rows for note in row.notes))
    return [block]


def _refuse_options_of_the_other_phase(
    phase: str, optimizer: str, recompute: str, kernels: str, kv_dtype: str | None, layout: Layout
) -> None:
    """Raise LLMBenchError if an option is set that has no effect in this phase."""
    if phase == "train":
        if kv_dtype is not None:
            raise LLMBenchError(
                f"--kv-dtype {kv_dtype}: a training step has no KV cache",
                hint="leave out --kv-dtype, or use --phase inference",
            )
        return
    for option, value, default in (
        ("optimizer", optimizer, "adamw"),
        ("recompute", recompute, "none"),
        ("kernels", kernels, "fused"),
    ):
        if value != default:
            raise LLMBenchError(
                f"--{option} {value} is for training and changes nothing with --phase inference",
                hint=f"leave out --{option}, or use --phase train",
            )
    if layout.zero:
        raise LLMBenchError(
            f"layout zero={layout.zero}: ZeRO splits training states, which do not exist in serving",
            hint="leave out zero; tp, pp and ep split the weights of a served model",
        )


def _batch_is(memory: Memory) -> str:
    """Return a text that says which sequences --batch counts."""
    if memory.phase == "train":
        return "sequences in a micro-batch of each data-parallel replica"
    return "sequences served at once by each data-parallel replica"


def fitting(memory: Memory) -> list[str]:
    """Return the names of the devices that have enough memory. The device with the least memory comes first."""
    return [name for name, memory_bytes in device_memories() if memory_bytes >= memory.needed_bytes]


def _smallest(row: Sized) -> str:
    return next(iter(fitting(row.memory)), "none")


_PART_NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer and master weights",
    "activations": "activations",
    "logits": "logits and loss",
    "kv_cache": "KV cache and states",
    "overhead": "library workspaces",
}


def _part_names(memory: Memory) -> dict[str, str]:
    return _PART_NAMES if memory.phase == "train" else _PART_NAMES | {"logits": "logits"}


def _block(row: Sized) -> Block:
    memory = row.memory
    names = _part_names(memory)
    parts: list[dict[str, Any]] = []
    for part in PARTS:
        peak, full = memory.parts_bytes[part], memory.full_bytes.get(part)
        if peak or full:
            in_shards = part == "weights" and _only_shards(memory)
            parts.append({"part": part, "peak_bytes": peak, "full_bytes": None if in_shards else full})
    columns: tuple[Field[dict[str, Any]], ...] = (
        Field("part", "part", text=lambda part: names.get(part["part"])),
        Field("peak_bytes", "at the peak", "gib"),
        Field("share", "share", "percent", value=lambda part: part["peak_bytes"] / memory.peak_bytes),
        Field("full_bytes", "in full", "gib"),
    )
    return model_block(
        row,
        context=_context(row),
        table=table(columns, parts, total={"part": "peak", "peak_bytes": memory.peak_bytes}),
        lines=_lines(memory),
    )


def _only_shards(memory: Memory) -> bool:
    """Return whether the fp32 shards are the only permanent copy of the weights (FSDP with a master copy)."""
    return memory.layout.zero == 3 and not memory.full_bytes["weights"]


def _context(row: Sized, *, tokens: bool = True, batch: bool = True) -> str:
    """Return two lines with the options that the figures depend on. `tokens`, `batch`: whether to say their values."""
    memory, layout = row.memory, row.memory.layout
    gpus = f"{layout.num_gpus:,} GPUs: {layout}" if layout.num_gpus > 1 else "one GPU"
    replica = " per replica" if layout.dp > 1 else ""
    sequences = "batch" if memory.phase == "inference" else "micro-batch"
    workload = [plural(memory.seq_len, "token")] if tokens else []
    workload += [f"{sequences} {memory.micro_batch:,}{replica}"] if batch else []
    said = " · ".join([*workload, gpus])
    if memory.phase == "inference":
        formats = f"weights {row.precision} · cache {row.kv_dtype}"
        return f"serving · {said}\n{formats}"
    recipe = training_precision(row.precision)
    formats = f"weights {recipe.weights}, gradients {recipe.gradients}"
    if layout.zero == 3 and recipe.master and recipe.gradients != "fp32":
        formats += " (fp32 after reduction)"
    formats += ", master weights fp32" if recipe.master else ", no master copy"
    recompute = "no recomputation" if row.recompute == "none" else f"recompute {row.recompute}"
    kernels = {
        "fused": "fused kernels, flash attention",
        "eager": "plain torch, flash attention",
        "standard": "plain torch, attention stores its scores",
    }[row.kernels or "fused"]
    return f"training step · {said}\n{row.precision} precision: {formats} · {row.optimizer} · {recompute} · {kernels}"


def _lines(memory: Memory) -> list[str]:
    layout = memory.layout
    lines = []
    stage = f" in pipeline stage {memory.stage + 1} of {layout.pp}" if layout.pp > 1 else ""
    if memory.phase == "train":
        moment = memory.moment.replace("{}.", "N.")
        step = "the optimizer step" if moment == "optimizer" else f"the backward pass of {moment}"
        lines.append(f"the peak is in {step}{stage and ','}{stage}; not every part exists in full at the peak")
        if layout.pp > 1:
            lines.append("assumption: twice as many micro-batches as pipeline stages, so that every stage has work")
        if layout.zero == 3:
            if _only_shards(memory):
                lines.append("weights at the peak are gathered copies; the fp32 shards are counted with the optimizer")
        else:
            weights = 2 * memory.parameters
            lines.append(
                f"the peak is {memory.peak_bytes / weights:.1f}× the bf16 weights on each GPU ({size(weights)}, "
                f"{billions(memory.parameters)} parameters); textbooks say 12–16×"
            )
    elif stage:
        lines.append(f"the GPU with the highest peak is{stage}")
    names = fitting(memory)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} larger" if len(names) > 8 else "")
    lines.append(
        f"{size(memory.needed_bytes)} with a CUDA context of {size(CONTEXT_BYTES)}: "
        + (f"fits on {shown}" if names else "fits on no built-in device")
    )
    return lines
