"""`llmbench model`: the real PyTorch model, built, run once, or traced beside its analytic figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmbench.cli.options import As, Batch, OneModel, Output, Seq, Set, answer, approximate_lines, load, title, working
from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.report.describe import headline
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import change, size
from llmbench.spec.mixer import AttentionKind, branches
from llmbench.spec.model import ModelSpec

if TYPE_CHECKING:
    from llmbench.model.describe import Built, Plan, Ran, TreeRow
    from llmbench.model.trace import Trace

Impl = Annotated[
    str,
    typer.Option(
        "--impl",
        metavar="NAME",
        help="How it is computed: standard, sdpa, sdpa-flash, sdpa-cudnn, sdpa-efficient, flex, flash, fused.",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, meta; auto takes a GPU.")]
DType = Annotated[Literal["fp32", "bf16", "fp16"], typer.Option("--dtype", help="Format of weights and activations.")]
Layers = Annotated[
    int | None,
    typer.Option("--layers", metavar="N", help="Build only the first N layers.", min=1, show_default=False),
]
Traced = Annotated[
    bool, typer.Option("--trace", help="FLOPs and saved bytes op by op, analytic and traced; needs no memory.")
]


def command(
    model: OneModel,
    impl: Impl = "sdpa",
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
    """The real PyTorch model: its modules, its memory, a forward pass.

    Weights are random, unless MODEL is a folder with safetensors: then they are read from there, in the format of
    --dtype. With --trace nothing is allocated: FLOPs are counted on meta tensors by torch's
    FlopCounterMode, and what autograd saves on fake ones (--impl standard holds the scores; any other is traced as a
    flash kernel), each beside what `llmbench flops --attention full` and `llmbench memory --kernels eager` say.

    Examples:

      llmbench model gpt2

      llmbench model smollm2-135m --layers 2 --impl standard --dtype fp32

      llmbench model deepseek-v3 --device meta

      llmbench model llama3.1-405b --trace --seq 8192

      llmbench model deepseek-v3 --trace --seq 4096 --format json
    """
    spec = load(model, set)
    if trace and device not in ("auto", "meta"):
        raise LLMBenchError(f"--trace computes without memory, on no device `{device}`", hint="leave --device out")
    try:
        from llmbench.model import describe
    except ModuleNotFoundError as problem:
        if problem.name is None or problem.name.partition(".")[0] != "torch":
            raise
        raise CannotRunError(
            "`llmbench model` needs PyTorch, which is not installed", hint="pip install 'llmbench[gpu]'"
        ) from None
    from llmbench.model.implementations import implementation

    implementation(impl)
    spec = describe.first_layers(spec, layers)
    row: dict[str, Any] = {
        "model": spec.name,
        "approximate": bool(spec.approximate),
        "approximate_because": list(spec.approximate),
        "layers": spec.num_hidden_layers,
        "dtype": dtype,
        "seq_len": seq,
        "batch": batch,
    }
    if trace:
        from llmbench.model.trace import trace as traced
        from llmbench.sizing.training import training_doubts

        with working("tracing"):
            found = traced(
                spec, seq_len=seq, batch=batch, dtype=dtype, attention="standard" if impl == "standard" else "flash"
            )
        because = training_doubts(spec)
        row["approximate"] = bool(spec.approximate or because)
        row["approximate_because"] += because
        row |= {"built": None, "trace": _trace_row(found)}
        block = _trace_block(spec, found, row, because)
    else:
        folder, unread = _weights(model, changed=bool(set) or layers is not None or device == "meta")
        plan = describe.Plan(impl, device, dtype, seq, batch, folder)
        with working("building"):
            built = describe.build_on(spec, plan)
        with working("running"):
            ran = describe.forward(built, plan)
        rows = describe.tree(built.model)
        row |= {"built": _built_row(rows, built, ran, plan), "trace": None}
        block = _built_block(spec, rows, built, ran, row)
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
        rows=[row],
        blocks=[block],
    )
    answer(document, format, output)


def _weights(model: str, *, changed: bool) -> tuple[Path | None, list[str]]:
    """The folder that weights are read from, and why none are where MODEL is a folder."""
    folder = Path(model)
    if not folder.is_dir():
        return None, []
    if not any(folder.glob("*.safetensors")):
        return None, [f"no weights were read: {folder} has no .safetensors"]
    if changed:
        return None, [f"the weights in {folder} were not read: --set, --layers and meta leave them out"]
    return folder, []


def _built_row(rows: list[TreeRow], built: Built, ran: Ran, plan: Plan) -> dict[str, Any]:
    return {
        "device": built.device,
        "impl": plan.impl,
        "weights": "none" if built.device == "meta" else "random" if plan.folder is None else str(plan.folder),
        "attention_kernels": ran.kernels,
        "parameters": built.parameters,
        "parameter_bytes": built.parameter_bytes,
        "memory_bytes": built.memory_bytes,
        "build_s": built.build_s,
        "forward_s": ran.forward_s,
        "logits_shape": ran.logits,
        "logits_finite": ran.finite,
        "modules": [row._asdict() for row in rows],
    }


def _built_block(spec: ModelSpec, rows: list[TreeRow], built: Built, ran: Ran, row: dict[str, Any]) -> Block:
    cells: list[list[Any]] = []
    for part in rows:
        depth = part.name.replace(".{}", "").count(".")
        name = part.name if depth == 0 else part.name.rpartition(".")[2]
        times = f"{part.instances} × " if part.instances > 1 and part.name.endswith("{}") else ""
        figures = (part.parameters, part.instances * part.parameters, part.instances * part.parameter_bytes)
        cells.append(["  " * depth + times + name, part.module, *figures])
    cells.append(["total", "", None, built.parameters, built.parameter_bytes])
    columns = [
        Column("module", name=True),
        Column("class"),
        Column("parameters", "count"),
        Column("in the model", "count"),
        Column("weights", "gib"),
    ]
    made = row["built"]
    shape = " × ".join(f"{length:,}" for length in ran.logits)
    tokens = f"one forward pass of {row['batch']:,} × {row['seq_len']:,} tokens"
    if built.device == "meta":
        lines = ["on meta, which has shapes and no memory", f"{tokens}: logits {shape}"]
    else:
        origin = "random weights" if made["weights"] == "random" else f"weights of {made['weights']}"
        grown = "" if built.memory_bytes is None else f"; memory grew by {size(built.memory_bytes)}"
        amount = f"{size(built.parameter_bytes)} of {row['dtype']}"
        lines = [
            f"{origin}: {amount} on {built.device} in {built.build_s:.2f} s{grown}",
            *_kernel_lines(spec, built, ran, made["impl"]),
            f"{tokens}: {ran.forward_s:.3f} s, logits {shape}" + (", NOT ALL FINITE" if ran.finite is False else ""),
        ]
    return Block(
        subject=title(spec),
        headline=headline(spec),
        table=Table(columns=columns, rows=cells, total=True),
        lines=[*lines, *approximate_lines(spec)],
    )


def _kernel_lines(spec: ModelSpec, built: Built, ran: Ran, impl: str) -> list[str]:
    """Which kernels ran: of attention, where there is any, and all of ours."""
    if impl == "fused":
        return [f"fused ran as: {', '.join(ran.kernels)}", *_where(built)]
    stacks = [spec.layers, *([spec.encoder.layers] if spec.encoder else [])]
    mixers = [mixer for layers in stacks for layer in layers.values() for mixer in branches(layer.mixer)]
    if not any(isinstance(mixer, AttentionKind) for mixer in mixers):
        return [f"no layer attends, so --impl {impl} changes nothing"]
    kernels = ", ".join(ran.kernels) or "plain products and a softmax, in torch"
    lines = [f"attention ({impl}) ran as: {kernels}"]
    if impl == "flash":
        lines += _where(built)
    if impl == "flex":
        lines.append("without torch.compile, flex computes plain products: use it for its result, not for its speed")
    return lines


def _where(built: Built) -> list[str]:
    """What stands for the Triton kernels where there is no GPU."""
    from llmbench.model.implementations.kernels import on_a_cpu

    return [on_a_cpu()] if built.device == "cpu" else []


def _trace_row(found: Trace) -> dict[str, Any]:
    return {
        "layers_traced": found.layers_traced,
        "forward_flops": sum(op.forward_flops or 0 for op in found.ops),
        "traced_flops": sum(op.traced_flops for op in found.ops),
        "saved_bytes": sum(op.saved_bytes or 0 for op in found.ops),
        "traced_saved_bytes": sum(op.traced_saved_bytes for op in found.ops),
        "ops": [op._asdict() for op in found.ops],
    }


def _trace_block(spec: ModelSpec, found: Trace, row: dict[str, Any], because: tuple[str, ...]) -> Block:
    """`because`: why the saved bytes are not exact."""
    kinds = len(spec.layers) > 1
    cells: list[list[Any]] = []
    group: tuple[str, str] = ("", "")
    instances = 1
    for op in found.ops:
        figures = (op.forward_flops, op.traced_flops, op.saved_bytes, op.traced_saved_bytes)
        if not any(figures):
            continue
        stack, inside, name = op.name.rpartition(".{}.")
        if inside and (stack, op.layer) != group:
            instances = op.instances
            cells.append([f"{instances} × {stack}" + (f" ({op.layer})" if kinds else ""), *[None] * 6])
        group = (stack, op.layer)
        times = f" × {op.instances}" if inside and op.instances != instances else ""
        cells.append([("  " if inside else "") + name + times, *_compared(*figures)])
    traced = row["trace"]
    totals = (traced["forward_flops"], traced["traced_flops"], traced["saved_bytes"], traced["traced_saved_bytes"])
    cells.append(["total", *_compared(*totals)])
    columns = [
        Column("op", name=True),
        Column("forward", "flops"),
        Column("traced", "flops"),
        Column("off", "percent"),
        Column("saved", "gib"),
        Column("traced saved", "gib"),
        Column("saved off", "percent"),
    ]
    lines = [
        f"FLOPs {change(totals[1], totals[0])}, saved bytes {change(totals[3], totals[2])} traced against analytic; "
        f"{found.layers_traced} of {spec.num_hidden_layers} layers traced, which stand for all",
        "FLOPs of the forward pass with all S×S score pairs; bytes kept for backward by eager kernels, weights apart",
    ]
    if any(op.recurrent for op in found.ops):
        lines.append("recurrences are counted in their step form, and are computed in torch as other operations")
    context = f"traced without memory · {row['batch']} × {row['seq_len']:,} tokens · {row['dtype']}"
    return Block(
        subject=title(spec, approximate=bool(because)),
        headline=f"{headline(spec, approximate=bool(because))}\n{context}",
        table=Table(columns=columns, rows=cells, total=True),
        lines=[*lines, *(f"approximate: {reason}" for reason in because), *approximate_lines(spec)],
    )


def _compared(flops: int | None, traced: int, saved: int | None, kept: int) -> list[Any]:
    """The figures with how far the traced are from the analytic, None where there is nothing to compare."""
    return [flops, traced, _off(traced, flops), saved, kept, _off(kept, saved)]


def _off(value: int, reference: int | None) -> float | None:
    return (value - reference) / reference if reference else None
