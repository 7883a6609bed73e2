"""The screen of `llmbench memory`: the answer in a sentence, and the parts of the peak as a table."""

from __future__ import annotations

from typing import Any

import msgspec

from llmbench.answers.about import model_block, sweep_fields, weights_line
from llmbench.answers.memory_devices import DEVICES_LINE, device_columns, devices_block, in_cases, on_devices
from llmbench.answers.memory_row import FIELDS, Sized
from llmbench.report.document import Block, table
from llmbench.report.fields import Field
from llmbench.report.units import plural, size, word_list
from llmbench.sizing.devices import HEADROOM, torch_devices
from llmbench.sizing.memory import CONTEXT_BYTES, PARTS, Memory, ServingRun
from llmbench.sizing.recipe import training_precision

NAMED = 3
"""The largest number of devices that the first sentence names without `--wide`."""


def blocks(rows: list[Sized]) -> list[Block]:
    """Return the answer, the formulas and the timeline of each row."""
    shown = [_sweep(rows)] if len(rows) > 1 else [_block(rows[0]), *devices_block(rows[0])]
    varied = [name for name in ("recompute", "kv_dtype") if _differs(rows, name)]
    for row in rows:
        where = "" if len(rows) == 1 else _where(row, varied)
        if row.formulas is not None:
            from llmbench.answers.formulas import formula_block

            shown.append(formula_block(row.formulas, where))
        if row.steps is not None:
            from llmbench.answers.timeline import timeline_block

            shown.append(timeline_block(row.steps, where))
    return shown


SWEPT = {"seq_len": "tokens", "micro_batch": "batch", "recompute": "recompute", "kv_dtype": "KV format"}
"""The headings of the options that a sweep can vary."""


def _differs(rows: list[Sized], name: str) -> bool:
    """Return whether the rows differ in the field of this name."""
    field = next(field for field in FIELDS if field.name == name)
    return any(field.value_of(row) != field.value_of(rows[0]) for row in rows)


def _where(row: Sized, varied: list[str]) -> str:
    """Return the headline of the formulas or the timeline of one row: what sets it apart from the other rows.

    varied: the fields in which the rows differ, besides the tokens and the batch.
    """
    parts = [plural(row.memory.seq_len, "token"), f"batch {row.memory.micro_batch:,}"]
    parts += [f"recompute {row.recompute}"] if "recompute" in varied else []
    parts += [f"cache {row.kv_dtype}"] if "kv_dtype" in varied else []
    return " · ".join(parts)


def _sweep(rows: list[Sized]) -> Block:
    """Return a table with a row for each combination of the options of a sweep."""
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
    changes: dict[str, dict[str, Any]] = {"peak_bytes": {"spare": len(PARTS) + 2}}
    moments = list(dict.fromkeys(map(_short_step, rows))) if first.memory.phase == "train" else []
    if len(moments) > 1:
        changes["moment"] = {"heading": "peak is in", "text": _short_step, "wraps": True, "spare": 1}
    fields = [
        msgspec.structs.replace(field, **changes.get(field.name, {})) for field in FIELDS[1:] if field.name != "fits_on"
    ]
    needed = Field[Sized](
        "needed_bytes", "needed", "gib", value=lambda row: row.memory.needed_bytes, in_json=False, repeats=True
    )
    columns = (
        msgspec.structs.replace(FIELDS[0], heading=None),
        *(
            column
            for field in sweep_fields(fields, rows, SWEPT)
            for column in ([needed, field] if field.name == "peak_bytes" else [field])
        ),
        *(part(name, 2 + by_size.index(name)) for name in parts),
        *device_columns(first),
    )
    block = model_block(
        first,
        context=_context(rows),
        table=table(columns, rows),
        lines=[
            *(f"the peak is in {_step(first.memory)}" for _ in moments if len(moments) == 1),
            NEEDED,
            *([DEVICES_LINE] if first.asked else []),
            *_rules(first),
        ],
    )
    block.about = {}
    block.answer = in_cases(rows) if first.asked else ""
    block.notes = list(dict.fromkeys([*_same_recompute(rows), *(note for row in rows for note in row.notes)]))
    return block


NEEDED = f"needed: the peak, free blocks of the allocator, and a CUDA context of {CONTEXT_BYTES // 2**20} MiB"


def _same_recompute(rows: list[Sized]) -> list[str]:
    """Return a note if selective recomputation changes nothing, because attention stores no scores."""
    if not _differs(rows, "recompute") or rows[0].kernels == "standard":
        return []
    return [
        "--recompute selective computes the scores of attention again, which flash attention never stores"
        for row in rows
        if row.recompute == "selective"
    ][:1]


PART_NAMES = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer and master weights",
    "activations": "activations",
    "logits": "logits and loss",
    "kv_cache": "KV cache and states",
    "overhead": "library workspaces",
    "free": "free blocks of the allocator",
    "context": "CUDA context",
}


def _part_names(memory: Memory) -> dict[str, str]:
    return PART_NAMES if memory.phase == "train" else PART_NAMES | {"logits": "logits"}


def _block(row: Sized) -> Block:
    memory = row.memory
    names = _part_names(memory)
    parts: list[dict[str, Any]] = []
    for part in PARTS:
        peak, full = memory.parts_bytes[part], memory.full_bytes.get(part)
        if peak or full:
            in_shards = part == "weights" and _only_shards(memory)
            parts.append({"part": part, "peak_bytes": peak, "full_bytes": None if in_shards else full})
    free = memory.reserved_bytes - memory.peak_bytes
    parts += [{"part": "free", "peak_bytes": free}] if free else []
    parts.append({"part": "context", "peak_bytes": CONTEXT_BYTES})
    columns: tuple[Field[dict[str, Any]], ...] = (
        Field("part", "part", text=lambda part: names.get(part["part"])),
        Field("peak_bytes", "at the peak", "gib"),
        Field("share", "share", "percent", value=lambda part: part["peak_bytes"] / memory.needed_bytes),
        # In serving, every part is as large at the peak.
        Field("full_bytes", "when complete" if memory.phase == "train" else None, "gib"),
    )
    block = model_block(
        row,
        context=_context([row]),
        table=table(columns, parts, total={"part": "needed", "peak_bytes": memory.needed_bytes}),
        lines=[_moment(memory), *_complete(memory), *_stages(row), *_rules(row)],
    )
    block.answer, block.long_answer = _answer(row, named=NAMED), _answer(row, named=len(row.verdicts))
    block.notes = [*_assumptions(row), *_adapter_notes(row), *block.notes]
    return block


def _answer(row: Sized, *, named: int) -> str:
    """Return the first sentence: the memory that a GPU needs, and the devices that can run the model.

    `named`: the largest number of devices to name, if the user asked for none by name.
    """
    memory, gpus = row.memory, row.memory.layout.num_gpus
    doing = "Training" if memory.phase == "train" else "Serving"
    where = "one GPU" if gpus == 1 else f"{gpus:,} GPUs"
    needs = f"{doing} {row.spec.name} on {where} needs {size(memory.needed_bytes)}{' per GPU' if gpus > 1 else ''}."
    if row.asked:
        return f"{needs}{on_devices(row)}"
    fits = [verdict.fit for verdict in row.verdicts]
    if not fits:
        largest = torch_devices()[-1]
        return (
            f"{needs} It fits on no built-in device; the largest is {largest.name} with {size(largest.memory_bytes)}."
        )
    devices = [f"{fit.device} ({fit.filled:.0%} filled)" for fit in fits[:named]]
    if len(fits) > named:
        devices.append(f"{plural(len(fits) - named, 'larger device')} (see --wide)")
    return f"{needs} It fits on {word_list(devices)}."


def _rules(row: Sized) -> list[str]:
    """Return the rule by which a device can run the model, and in training the option that asks about serving."""
    units = f", and its matrix units compute {row.products}" if row.products != "fp32" else ""
    rule = f"a device fits if {HEADROOM:.0%} of its memory stays free{units}"
    return [rule, "for serving instead of training: --phase inference"] if row.memory.phase == "train" else [rule]


def _only_shards(memory: Memory) -> bool:
    """Return whether the fp32 shards are the only permanent copy of the weights (FSDP with a master copy)."""
    return memory.layout.zero == 3 and not memory.full_bytes["weights"]


def _context(rows: list[Sized]) -> str:
    """Return two lines with the options that the figures of all rows depend on."""
    row = rows[0]
    memory, layout = row.memory, row.memory.layout
    gpus = f"{layout.num_gpus:,} GPUs: {layout}" if layout.num_gpus > 1 else "one GPU"
    gpus += f",etp={layout.expert_tp}" if layout.ep > 1 and layout.etp is None else ""
    replica = " per replica" if layout.dp > 1 else ""
    sequences = "batch" if memory.phase == "inference" else "micro-batch"
    workload = [] if _differs(rows, "seq_len") else [plural(memory.seq_len, "token")]
    workload += [] if _differs(rows, "micro_batch") else [f"{sequences} {memory.micro_batch:,}{replica}"]
    said = " · ".join([*workload, gpus])
    if row.weights is not None:
        formats = f"weights: {weights_line(row.weights)}"
        formats += "" if _differs(rows, "kv_dtype") else f" · cache {row.kv_dtype}"
        return f"serving · {said}\n{formats}"
    assert row.precision is not None
    recipe = training_precision(row.precision)
    formats = f"weights {recipe.weights}, gradients {recipe.gradients}"
    if layout.zero == 3 and recipe.master and recipe.gradients != "fp32":
        formats += " (fp32 after reduction)"
    master = None if isinstance(row.run, ServingRun) else row.run.recipe.master
    formats += f", master weights {master or 'fp32'}" if recipe.master else ", no master copy"
    recompute = "no recomputation · " if row.recompute == "none" else f"recompute {row.recompute} · "
    if _differs(rows, "recompute"):
        recompute = ""
    kernels = {
        "fused": "fused kernels, flash attention",
        "eager": "plain torch, flash attention",
        "standard": "plain torch, attention stores its scores",
    }[row.kernels or "fused"]
    settings = f"{row.precision} precision: {formats} · {row.optimizer} · {recompute}{kernels}"
    return f"training step · {said}\n{settings}{_more(row)}"


def _more(row: Sized) -> str:
    """Return the settings of a training step that differ from their defaults."""
    said = [f"{row.loss} loss"] if row.loss != "plain" else []
    said += ["dropout"] if row.dropout else []
    passes, pp = row.micro_batches or 1, row.memory.layout.pp
    said += [f"{passes:,} micro-batches per step"] if passes > 1 and passes != 2 * pp else []
    said += [row.recipe] if row.recipe else []
    if row.lora is not None:
        total = row.lora.trained + row.lora.frozen
        said.append(f"lora {row.lora.text}" + (f", base {row.lora.base}" if row.lora.base else ""))
        said.append(f"{row.lora.trained:,} of {total:,} parameters are trained ({row.lora.trained / total:.2%})")
    return "\n" + " · ".join(said) if said else ""


def _moment(memory: Memory) -> str:
    """Return a line that says where the peak is."""
    stage = f" in pipeline stage {memory.stage + 1} of {memory.layout.pp}" if memory.layout.pp > 1 else ""
    peak = f"the peak of PyTorch's tensors is {size(memory.peak_bytes)}"
    if memory.phase == "inference":
        return f"{peak}, in a prefill{stage}"
    return f"{peak}, in {_step(memory)}{stage and ','}{stage}"


def _step(memory: Memory) -> str:
    """Return the work of a training step that runs at the peak."""
    stack, _, name = memory.moment.rpartition(".{}.")
    names = {
        "layers": "a layer's",
        "encoder.layers": "an encoder layer's",
        "mtp": "a multi-token prediction module's",
        "": "",
    }
    moment = f"{names[stack]} {name}".strip()
    return "the optimizer step" if moment == "optimizer" else f"the backward pass of {moment}"


def _short_step(row: Sized) -> str:
    return _step(row.memory).removeprefix("the ").replace("backward pass", "backward")


def _complete(memory: Memory) -> list[str]:
    """Return a line that explains the column of complete parts."""
    if memory.phase == "inference":
        return []
    return ["when complete: all weights, all gradients, all optimizer states, and all activations that are saved"]


def _stages(row: Sized) -> list[str]:
    """Return lines with the layers of each pipeline stage, and with the peaks of the first and of the last one.
    Megatron logs the last one."""
    memory = row.memory
    if memory.layout.pp == 1:
        return []
    stages = row.run.stages() if isinstance(row.run, ServingRun) else row.run.stages
    counts = [sum(len(chunk.layers) for chunk in stage.chunks) for stage in stages]
    layers = f"{counts[0]} layers each" if len(set(counts)) == 1 else f"{', '.join(map(str, counts))} layers"
    if any(op.stack == "mtp" for stage in stages for op in stage.ops):
        layers += ", modules for multi-token prediction included"
    first, *_, last = memory.stage_peaks
    return [
        f"{plural(len(counts), 'pipeline stage')} of {layers}",
        f"peak of the first pipeline stage: {size(first)} · of the last one: {size(last)} (JSON has all stages)",
    ]


def _adapter_notes(row: Sized) -> list[str]:
    """Return notes on adapters: which matrices have none, and the copy of a quantised matrix."""
    if row.lora is None:
        return []
    notes = []
    if row.lora.base is not None:
        notes.append("assumption: each product converts its quantised matrix to 16 bits, one matrix at a time")
    if row.spec.is_moe:
        notes.append("experts and routers have no adapters; their weights are frozen")
    return notes


def _assumptions(row: Sized) -> list[str]:
    """Return notes that explain the figures of a training step."""
    notes, memory = [], row.memory
    if memory.host_bytes:
        parts = ", ".join(f"{part} {size(stored)}" for part, stored in memory.host_bytes.items())
        notes.append(f"the memory of the host stores {size(sum(memory.host_bytes.values()))} per GPU: {parts}")
    if row.micro_batches == 2 * memory.layout.pp > 2:
        notes.append("assumption: twice as many micro-batches as pipeline stages, so that every stage has work")
    if _only_shards(memory):
        notes.append("weights at the peak are gathered copies; the fp32 shards are counted with the optimizer")
    return notes
