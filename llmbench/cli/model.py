"""`llmbench model`: build a PyTorch model and run it once, or trace it and compare the trace with the op table."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from llmbench.answers.about import MODEL_FIELDS, AboutModel, model_block
from llmbench.cli.measured import device_option, need_torch
from llmbench.cli.options import (
    As,
    Batch,
    OneModel,
    Output,
    Seq,
    Set,
    answer,
    load,
    positive_integer,
    prints_tables,
    working,
)
from llmbench.errors import LLMBenchError
from llmbench.model.implementations import IMPLEMENTATIONS, PREFERENCE, preferred
from llmbench.report.document import Block, Document, Table, table
from llmbench.report.fields import Field, fitted, record, records
from llmbench.report.units import change, size
from llmbench.spec.catalog import built_in
from llmbench.spec.mixer import AttentionKind, branches
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.model.describe import BuiltModel, ForwardPass, Plan, TreeRow
    from llmbench.model.trace import Trace, TracedOp

Impl = Annotated[
    str | None,
    typer.Option(
        "--impl",
        metavar="NAME",
        help=f"Implementation of the model: {', '.join(IMPLEMENTATIONS)}. Default: {PREFERENCE[0]} if it can compute "
        f"the model, else {PREFERENCE[1]}.",
        show_default=False,
    ),
]
Device = Annotated[
    str,
    device_option(
        "cpu, cuda, cuda:1 or meta (tensors without memory)", names=("auto", "cpu", "cuda", "cuda:1", "meta")
    ),
]
DType = Annotated[
    Literal["fp32", "bf16", "fp16"], typer.Option("--dtype", help="Number format of weights and activations.")
]
Layers = Annotated[
    int | None,
    typer.Option(
        "--layers", metavar="N", help="Build only the first N layers.", parser=positive_integer, show_default=False
    ),
]
Traced = Annotated[
    bool,
    typer.Option(
        "--trace",
        help="Trace the FLOPs and the saved activations of each op without allocating memory, and compare them with "
        "the predictions.",
    ),
]
MODULES: tuple[Field[TreeRow], ...] = (
    Field(
        "name",
        "module",
        text=lambda row: _indented(row),
        description="name of the module; `{}` stands for the index of the layer",
    ),
    Field("instances", description="number of instances of the module in the model, one per layer that has it"),
    Field("parameters", "in one module", "count", description="parameters of one instance, including its submodules"),
    Field("parameter_bytes", description="bytes of the parameters of one instance"),
    Field("model_parameters", "parameters", "count", lambda row: row.instances * row.parameters, in_json=False),
    Field(
        "model_bytes", "weights", "gib", lambda row: row.instances * row.parameter_bytes, in_json=False, scale="bytes"
    ),
    Field("module", "class", wraps=True, spare=1, description="Python class of the module"),
)


class Run(NamedTuple):
    """A built model, the options of the build, the result of the forward pass, and the modules."""

    plan: Plan
    built: BuiltModel
    ran: ForwardPass
    modules: list[TreeRow]


BUILT: tuple[Field[Run], ...] = (
    Field("device", value=lambda run: run.built.device, description="device that stores the weights"),
    Field("impl", value=lambda run: run.plan.impl, description="implementation that computed the model"),
    Field(
        "weights",
        value=lambda run: _origin(run),
        description="`random`, or the folder from which the weights were read, or `none` on device meta",
    ),
    Field(
        "attention_kernels",
        value=lambda run: run.ran.kernels,
        description="attention kernels that ran in the forward pass; empty if attention ran as matrix products and a "
        "softmax, or if no forward pass ran",
    ),
    Field(
        "parameters",
        value=lambda run: run.built.parameters,
        description="number of parameters; tied parameters count once",
    ),
    Field("parameter_bytes", value=lambda run: run.built.parameter_bytes, description="bytes of all parameters"),
    Field(
        "memory_bytes",
        value=lambda run: run.built.memory_bytes,
        description="bytes that the build added to the memory of torch (on a GPU) or of the process (on a CPU); null "
        "if unknown",
    ),
    Field("build_s", value=lambda run: run.built.build_s, description="seconds that the build took"),
    Field(
        "forward_s",
        value=lambda run: run.ran.forward_s,
        description="seconds that the second forward pass took; null on device meta",
    ),
    Field("logits_shape", value=lambda run: run.ran.logits, description="shape of the logits"),
    Field(
        "logits_finite",
        value=lambda run: run.ran.finite,
        description="whether all logits are finite; null on device meta",
    ),
    Field(
        "modules",
        value=lambda run: records(MODULES, run.modules),
        description="list of modules",
    ),
)


OPS: tuple[Field[TracedOp], ...] = (
    Field("name", "op", description="name of the op; `{}` stands for the index of the layer"),
    Field("layer", description="kind of layer that contains the op; empty if the op is outside the layers"),
    Field("instances", description="number of instances of the op in the model"),
    Field("recurrent", description="whether the op is a recurrence, whose FLOPs are counted step by step"),
    Field(
        "forward_flops",
        "forward",
        "gflops",
        scale="flops",
        description="predicted FLOPs of the op in the forward pass; null if the op table has no such op",
    ),
    Field(
        "traced_flops",
        "traced",
        "gflops",
        scale="flops",
        description="FLOPs of the op in the forward pass, counted by torch's FlopCounterMode",
    ),
    Field(
        "flops_difference",
        "difference",
        "error",
        lambda op: _difference(op.traced_flops, op.forward_flops),
        in_json=False,
    ),
    Field(
        "saved_bytes",
        "saved",
        "gib",
        scale="saved",
        description="predicted bytes of the op's saved activations with eager kernels; null if the op table has no "
        "such op",
    ),
    Field(
        "traced_saved_bytes",
        "traced saved",
        "gib",
        scale="saved",
        description="bytes of the op's saved activations, counted by autograd's hooks",
    ),
    Field(
        "saved_difference",
        "saved difference",
        "error",
        lambda op: _difference(op.traced_saved_bytes, op.saved_bytes),
        in_json=False,
    ),
)
TRACE: tuple[Field[Trace], ...] = (
    Field("layers_traced", description="number of traced layers; each other layer has the figures of a traced layer"),
    Field(
        "forward_flops", value=lambda trace: _total(trace).forward_flops, description="sum of this field over all ops"
    ),
    Field("traced_flops", value=lambda trace: _total(trace).traced_flops, description="sum of this field over all ops"),
    Field("saved_bytes", value=lambda trace: _total(trace).saved_bytes, description="sum of this field over all ops"),
    Field(
        "traced_saved_bytes",
        value=lambda trace: _total(trace).traced_saved_bytes,
        description="sum of this field over all ops",
    ),
    Field("ops", value=lambda trace: records(OPS, trace.ops), description="list of ops"),
)


class Modelled(AboutModel, kw_only=True):
    """A model that was either built or traced."""

    dtype: str
    seq_len: int
    batch: int
    run: Any = None
    """The `Run` of a built model, or None with --trace."""
    traced: Any = None
    """The `Trace` of the model, or None without --trace."""


FIELDS: tuple[Field[Modelled], ...] = (
    *MODEL_FIELDS,
    Field(
        "layers",
        value=lambda row: row.spec.num_hidden_layers,
        description="number of layers of the model; `--layers` can limit it",
    ),
    Field("dtype", description="value of `--dtype`: number format of weights and activations"),
    Field("seq_len", description="value of `--seq`: tokens per sequence"),
    Field("batch", description="value of `--batch`: number of sequences"),
    Field(
        "built",
        value=lambda row: None if row.run is None else record(BUILT, row.run),
        description="facts about the built model; null with `--trace`",
    ),
    Field(
        "trace",
        value=lambda row: None if row.traced is None else record(TRACE, row.traced),
        description="the trace; null without `--trace`",
    ),
)


@prints_tables
def command(
    model: OneModel,
    impl: Impl = None,
    device: Device = "auto",
    dtype: DType = "bf16",
    layers: Layers = None,
    trace: Traced = False,
    seq: Seq = 128,
    batch: Batch = 1,
    set: Set = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Build a PyTorch model, run a forward pass, and show the modules, the memory and the time.

    Weights are random, unless MODEL is a folder with safetensors files. Weights from files are converted to --dtype.
    The exit code is 1 if a logit is not finite.

    With --trace, no memory is allocated: torch's FlopCounterMode counts FLOPs on meta tensors, and autograd's hooks
    count saved bytes on fake tensors. The table shows the predictions of `llmbench flops --attention full` and
    `llmbench memory --kernels eager` next to these counts. With --impl standard, attention stores its scores. Otherwise
    attention is traced as a flash kernel.

    Examples:

      llmbench model gpt2

      llmbench model smollm2-135m --layers 2 --impl standard --dtype fp32

      llmbench model mixtral-8x7b --device meta

      llmbench model llama3.1-405b --trace --seq 8192

      llmbench model deepseek-v3 --trace --seq 4096 --format json
    """
    spec = load(model, set)
    if trace and device not in ("auto", "meta"):
        raise LLMBenchError(
            f"--trace takes no --device `{device}`: it allocates no memory on any device", hint="leave out --device"
        )
    need_torch("model")
    from llmbench.model import describe
    from llmbench.model.implementations import implementation

    name, reason = preferred(spec) if impl is None else (impl, "")
    traits = implementation(name).traits
    spec = describe.first_layers(spec, layers)
    if trace:
        from llmbench.model.trace import trace as trace_model
        from llmbench.sizing.training import training_doubts

        with working("tracing"):
            attention = "flash" if impl is None else traits.attention
            traced = trace_model(spec, seq_len=seq, batch=batch, dtype=dtype, attention=attention)
        doubts = training_doubts(spec)
        row = Modelled(spec=spec, doubts=doubts, tokens=seq, dtype=dtype, seq_len=seq, batch=batch, traced=traced)
        block = _trace_block(row, traced, by_stack=format != "csv")
    else:
        folder, unread = _weights(model, changed=bool(set) or layers is not None or device == "meta")
        plan = describe.Plan(name, device, dtype, seq, batch, folder)
        with working("building"):
            built = describe.build_on(spec, plan)
        with working("running"):
            ran = describe.forward(built, plan)
        run = Run(plan, built, ran, describe.tree(built.model))
        row = Modelled(spec=spec, tokens=seq, dtype=dtype, seq_len=seq, batch=batch, run=run)
        block = _built_block(row, run)
        if reason:
            block.lines.append(f"implementation: {name}, because {reason}")
        block.lines += unread
    document = Document(
        command="model",
        inputs={
            "model": model,
            "impl": impl,
            "device": device,
            "dtype": dtype,
            "layers": layers,
            "trace": trace,
            "seq_len": seq,
            "batch": batch,
            "set": set or [],
        },
        rows_key="models",
        rows=[record(FIELDS, row)],
        blocks=[block],
    )
    answer(document, format, output)
    if row.run is not None and row.run.ran.finite is False:
        raise typer.Exit(1)


def _weights(model: str, *, changed: bool) -> tuple[Path | None, list[str]]:
    """Return the folder from which weights are read, and lines that say why the weights of `model` are not read.

    The folder is None if the weights are random.
    """
    folder = Path(model)
    if built_in(model) is not None or not os.path.isdir(folder):
        return None, []
    if not any(folder.glob("*.safetensors")):
        return None, [f"no weights were read: {folder} has no .safetensors file"]
    if changed:
        return None, [f"the weights in {folder} were not read, because --set, --layers or --device meta was given"]
    return folder, []


def _origin(run: Run) -> str:
    """Return the origin of the weights: `none`, `random` or a folder."""
    if run.built.device == "meta":
        return "none"
    return "random" if run.plan.folder is None else str(run.plan.folder)


def _indented(row: TreeRow) -> str:
    depth = row.name.replace(".{}", "").count(".")
    name = row.name if depth == 0 else row.name.rpartition(".")[2]
    count = f"{row.instances} × " if row.instances > 1 and row.name.endswith("{}") else ""
    return "  " * depth + count + name


def _built_block(row: Modelled, run: Run) -> Block:
    plan, built, ran = run.plan, run.built, run.ran
    from llmbench.model.describe import TreeRow

    total = TreeRow("total", "", 1, built.parameters, built.parameter_bytes)
    shape = " × ".join(f"{length:,}" for length in ran.logits)
    tokens = f"one forward pass of {plan.batch:,} × {plan.seq_len:,} tokens"
    if built.device == "meta":
        lines = [
            "device meta: tensors have a shape but no memory",
            f"{tokens} with implementation {plan.impl}: logits {shape}",
        ]
    else:
        weights = "random weights" if plan.folder is None else f"weights of {plan.folder}"
        growth = "" if built.memory_bytes is None else f"; memory grew by {size(built.memory_bytes)}"
        amount = f"{size(built.parameter_bytes)} of {plan.dtype}"
        lines = [
            f"{weights}: {amount} on {built.device} in {built.build_s:.2f} s{growth}",
            *_kernel_lines(row.spec, built, ran, plan.impl),
            f"{tokens}: {ran.forward_s:.3f} s, logits {shape}" + (", NOT ALL FINITE" if ran.finite is False else ""),
        ]
    return model_block(row, table=table(fitted(MODULES, run.modules), run.modules, total=total), lines=lines)


def _kernel_lines(spec: ModelSpec, built: BuiltModel, ran: ForwardPass, impl: str) -> list[str]:
    """Return lines about the kernels that ran.

    The lines name all Triton kernels if the implementation has fused kernels, else only the kernels of attention.
    """
    from llmbench.model.implementations import described

    implementation = described(impl)
    traits = implementation.traits
    if traits.fused_kernels:
        return [f"{impl} ran as: {', '.join(ran.kernels)}", *_where(built)]
    stacks = [spec.layers, *([spec.encoder.layers] if spec.encoder else [])]
    mixers = [mixer for layers in stacks for layer in layers.values() for mixer in branches(layer.mixer)]
    if not any(isinstance(mixer, AttentionKind) for mixer in mixers):
        return ["no layer has attention, so --impl has no effect"]
    kernels = ", ".join(ran.kernels) or "matrix products and a softmax of torch"
    lines = [f"attention ({impl}) ran as: {kernels}"]
    if traits.triton:
        lines += _where(built)
    if implementation.note:
        lines.append(implementation.note)
    return lines


def _where(built: BuiltModel) -> list[str]:
    """Return a line about the code that replaces the Triton kernels on a CPU. Return no line on a GPU."""
    from llmbench.model.implementations.kernels import on_a_cpu

    return [on_a_cpu()] if built.device == "cpu" else []


def _total(trace: Trace) -> TracedOp:
    """Return a row with the sums over all ops."""
    from llmbench.model.trace import TracedOp

    return TracedOp(
        name="total",
        layer="",
        instances=1,
        recurrent=any(op.recurrent for op in trace.ops),
        forward_flops=sum(op.forward_flops or 0 for op in trace.ops),
        traced_flops=sum(op.traced_flops for op in trace.ops),
        saved_bytes=sum(op.saved_bytes or 0 for op in trace.ops),
        traced_saved_bytes=sum(op.traced_saved_bytes for op in trace.ops),
    )


def _trace_block(row: Modelled, trace: Trace, *, by_stack: bool) -> Block:
    total = _total(trace)
    flops = change(total.traced_flops, total.forward_flops or 0)
    saved = change(total.traced_saved_bytes, total.saved_bytes or 0)
    count = row.spec.num_hidden_layers
    traced = f"{trace.layers_traced} of {count} layers were traced; each other layer has the figures of a traced layer "
    lines = [
        f"traced relative to predicted: FLOPs {flops}, saved bytes {saved}",
        "all layers were traced" if trace.layers_traced == count else f"{traced}of its kind",
        "FLOPs: forward pass with all (query, key) pairs; saved bytes: activations that eager kernels save",
    ]
    if total.recurrent:
        lines.append(
            "recurrences are predicted token by token; torch computes chunks or scans, with another number of FLOPs"
        )
    return model_block(
        row,
        context=f"traced without memory · {row.batch} × {row.seq_len:,} tokens · {row.dtype}",
        table=_by_stack(trace, total, several=len(row.spec.layers) > 1) if by_stack else table(OPS, trace.ops),
        lines=lines,
    )


def _by_stack(trace: Trace, total: TracedOp, *, several: bool) -> Table:
    """Return a table for people. Above the ops of each kind of layer stands a row with the name of this kind.

    Ops without figures are left out.
    """
    rows: list[list[Any]] = []
    group: tuple[str, str] = ("", "")
    instances = 1
    for op in trace.ops:
        if not any((op.forward_flops, op.traced_flops, op.saved_bytes, op.traced_saved_bytes)):
            continue
        stack, inside, name = op.name.rpartition(".{}.")
        if inside and (stack, op.layer) != group:
            instances = op.instances
            kind = f" ({op.layer})" if several else ""
            rows.append([f"{instances} × {stack}{kind}", *[""] * (len(OPS) - 1)])
        group = (stack, op.layer)
        count = f" × {op.instances}" if inside and op.instances != instances else ""
        rows.append([("  " if inside else "") + name + count, *(field.value_of(op) for field in OPS[1:])])
    rows.append([field.value_of(total) for field in OPS])
    return Table(columns=fitted(OPS, trace.ops), rows=rows, total=True)


def _difference(value: int, reference: int | None) -> float | None:
    return (value - reference) / reference if reference else None
