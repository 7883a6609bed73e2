"""`llmbench profile`: how fast is this piece, how far from the limit, and where does its time go?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmbench.cli.measured import (
    Device,
    DType,
    cells,
    check_file,
    columns_of,
    fail_where_wrong,
    machine,
    need_torch,
    one_table,
)
from llmbench.cli.options import MODEL_HELP, As, Output, Set, answer, approximate_lines, load, title, working
from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.report.describe import headline
from llmbench.report.document import Block, Column, Document, Table
from llmbench.report.units import plural

if TYPE_CHECKING:
    from llmbench.bench.pieces.piece import Piece, Setting
    from llmbench.bench.profile import Profile
    from llmbench.bench.results.metrics import Figures

Named = Annotated[str, typer.Argument(metavar="PIECE", help="What is timed; listed above.", show_default=False)]
Impl = Annotated[
    str | None,
    typer.Option(
        "--impl",
        metavar="NAME",
        help="How it is computed: standard, sdpa, sdpa-flash, sdpa-cudnn, sdpa-efficient, flex, flash, fused, compiled "
        "(standard by torch.compile), grouped (standard, experts by grouped products), rope-fused (flash, rotations "
        "fused). Attention is computed by flash unless given, the rest by fused on a GPU.",
        show_default=False,
    ),
]
Of = Annotated[
    str | None,
    typer.Option("--model", metavar="MODEL", help=f"Whose shapes. {MODEL_HELP}", show_default=False),
]
Tokens = Annotated[
    int | None,
    typer.Option("--seq", metavar="TOKENS", help="Tokens of a sequence.", min=1, max=2**31, show_default=False),
]
Sequences = Annotated[
    int | None,
    typer.Option("--batch", metavar="N", help="Sequences at once.", min=1, max=2**31, show_default=False),
]
Timed = Annotated[Literal["forward", "backward", "both"], typer.Option("--pass", help="What is timed.")]
By = Annotated[
    Literal["kernel"] | None,
    typer.Option("--by", help="Each kernel with its op: predicted, measured.", show_default=False),
]
Traced = Annotated[
    Path | None, typer.Option("--trace", metavar="FILE", help="Write a Chrome trace of a call.", show_default=False)
]


def command(
    piece: Named,
    impl: Impl = None,
    model: Of = None,
    set: Set = None,
    seq: Tokens = None,
    batch: Sequences = None,
    dtype: DType = None,
    of: Timed = "forward",
    device: Device = "auto",
    by: By = None,
    trace: Traced = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """One piece of a model, timed beside its prediction, the machine's limits and plain torch.

    PIECE is attention, decode (one new token on a cache), mla (the same on latents), norm, rope, glu, moe, loss, block
    (a layer) or model. It is checked against plain torch in fp64 before it is timed; exit code 1 where it is INCORRECT
    or FAILED. A CPU has smaller default shapes.

    Examples:

      llmbench profile attention --impl flash

      llmbench profile norm --device cpu --seq 64

      llmbench profile block --device cpu --model smollm2-135m --seq 32 --pass both --by kernel

      llmbench profile decode --device cpu --model llama3-8b --seq 512 --batch 2 --format json
    """
    need_torch("profile")
    from llmbench.bench.pieces import find_piece
    from llmbench.bench.profile import chosen, profile, setting_of

    if set and model is None:
        raise LLMBenchError("--set changes a model, and none was named", hint="--model names it")
    check_file("--trace", trace)
    check_file("--output", output)
    if trace is not None and output is not None and trace.absolute() == output.absolute():
        raise LLMBenchError(f"--output and --trace are both {trace}", hint="name two files")
    found = find_piece(piece)
    spec = None if model is None else load(model, set)
    setting, notes = setting_of(found, spec, seq_len=seq, batch=batch, dtype=dtype, of=of, device=device)
    names = chosen(found, impl, setting)
    with working(f"measuring {piece}"):
        measured = profile(found, setting, names, by_kernel=by is not None or trace is not None)
    document = _document(
        found,
        setting,
        measured,
        {
            "piece": piece,
            "impl": impl,
            "model": model,
            "set": set or [],
            "seq_len": seq,
            "batch": batch,
            "dtype": dtype,
            "pass": of,
            "device": device,
            "by": by,
        },
        notes,
    )
    answer(document, format, output)
    if trace is not None:
        _save(measured, trace)
    fail_where_wrong(measured.rows)


def _save(measured: Profile, trace: Path) -> None:
    """Write the trace, once the answer is out, and say so."""
    if measured.recording is None:
        raise CannotRunError(f"no trace: {measured.unrecorded}")
    measured.recording.save(trace)
    sys.stderr.write(f"wrote {trace}\n")


def _document(piece: Piece, setting: Setting, measured: Profile, inputs: dict[str, Any], notes: list[str]) -> Document:
    import msgspec

    from llmbench.bench.results.metrics import figures, plain

    baseline = measured.rows[-1]
    rows = plain(measured.rows, measured.yardsticks, dict.fromkeys(range(len(measured.rows)), baseline))
    known = [figures(row, measured.yardsticks, baseline) for row in measured.rows]
    ops = None
    if measured.ops is not None:
        ops = [op._asdict() | {"launches": [each._asdict() for each in op.launches]} for op in measured.ops]
    blocks = [_block(piece, setting, measured, known, notes)]
    if inputs["by"] is not None:
        blocks.append(_kernel_block(setting, measured))
    return Document(
        command="profile",
        version=2,
        inputs=inputs,
        rows_key="implementations",
        rows=rows,
        blocks=blocks,
        environment=msgspec.to_builtins(measured.environment),
        also={"reference_measurements": msgspec.to_builtins(measured.yardsticks.references), "ops": ops},
        tables=[one_table(measured.rows, known), *(block.table for block in blocks[1:] if block.table is not None)],
    )


def _block(piece: Piece, setting: Setting, measured: Profile, known: list[Figures], notes: list[str]) -> Block:
    columns = columns_of(known)
    rows = [
        [row.implementation, *cells(row, figures, columns), figures.speedup]
        for row, figures in zip(measured.rows, known, strict=True)
    ]
    first = measured.rows[0]
    lines = machine(measured.environment, measured.yardsticks, measured.rows)
    if first.work_flops is not None and first.work_bytes:
        each = f"{first.work_flops:,} FLOPs, {first.work_flops / first.work_bytes:,.1f} a byte"
        products = each if first.work_flops else "no products"
        bound = measured.yardsticks.bound(first)
        lines.append(f"the work: {first.work_bytes:,} bytes, {products}: bound by {bound} here")
    ran = [f"{row.implementation} ran {', '.join(row.kernels)}" for row in measured.rows if row.kernels]
    tokens = plural(setting.seq_len, "token")
    what = f"{piece.name} · {setting.of} · batch {setting.batch:,} · {tokens} · {setting.dtype}"
    return Block(
        subject=title(setting.spec),
        headline=f"{headline(setting.spec)}\n{what}: {piece.what}",
        table=Table(
            columns=[Column("implementation", name=True), *columns.values(), Column("speed-up", "ratio")], rows=rows
        ),
        lines=[*lines, *ran, *measured.notes, *notes, *approximate_lines(setting.spec)],
    )


def _kernel_block(setting: Setting, measured: Profile) -> Block:
    """Ops, what took longest first, each with its kernels below."""
    if measured.ops is None:
        return Block(lines=[f"no kernels: {measured.unrecorded}"])
    total = sum(op.measured_s for op in measured.ops) or 1.0
    rows: list[list[Any]] = []
    for op in measured.ops:
        rows.append([op.op, None, op.predicted_s, op.measured_s if op.launches else None, op.measured_s / total])
        shown = [each for each in op.launches if each.total_s >= LEAST * total]
        for each in shown:
            way = " (backward)" if each.backward else ""
            rows.append([f"  {each.kernel}{way}", each.runs, None, each.total_s, each.total_s / total])
        rest = op.launches[len(shown) :]
        if shown and rest:
            time = sum(each.total_s for each in rest)
            rows.append([f"  {len(rest)} more", sum(each.runs for each in rest), None, time, time / total])
    predicted = sum(op.predicted_s or 0.0 for op in measured.ops)
    rows.append(["total", None, predicted, total, 1.0])
    columns = [
        Column("op, and its kernels", wraps=True),
        Column("runs", "count"),
        Column("predicted", "ms"),
        Column("measured", "ms"),
        Column("share", "percent"),
    ]
    what = "kernels" if setting.device.type == "cuda" else "torch's ops, which the profiler slows down,"
    return Block(
        headline=f"where the time of {measured.rows[0].implementation} goes: {what} by op of the table",
        table=Table(columns=columns, rows=rows, total=True),
        lines=["predicted: the roofline of this run's limits; – is no op of the table, or one without a kernel"],
    )


LEAST = 0.01
"""Of the whole time, what a kernel takes that the table shows by itself; JSON has all."""
