"""`llmbench profile`: time one piece of a model and each of its kernels, and compare the time with the limit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from llmbench.answers.about import approximate_lines
from llmbench.bench.extra_candidates import CANDIDATES
from llmbench.bench.pieces import PIECES, default_implementations
from llmbench.bench.results.metrics import METRICS, Line, as_json
from llmbench.bench.results.sentences import about_table
from llmbench.cli.help import SEVERAL
from llmbench.cli.measured import (
    IMPLEMENTATION,
    Device,
    DType,
    ModelName,
    check_file,
    chosen_model,
    fail_where_wrong,
    listed,
    machine,
    machine_notes,
    need_torch,
    one_table,
    paired_notes,
)
from llmbench.cli.messages import say
from llmbench.cli.options import As, Output, Set, answer, positive_integer, prints_tables, token_count, working
from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.report.describe import headline
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, fitted
from llmbench.report.units import percent, plural
from llmbench.spec.base import word_list

if TYPE_CHECKING:
    from llmbench.bench.pieces.piece import Piece, Setting
    from llmbench.bench.profile import Profile, Target

COMPARED_IN = word_list([about.experiment for about in PIECES.values() if about.experiment])
"""The experiments of `bench` that compare several implementations of a piece."""

Named = Annotated[
    str, typer.Argument(metavar="PIECE", help="The piece to time, from the list above.", show_default=False)
]
Impl = Annotated[
    str | None,
    typer.Option(
        "--impl",
        metavar="NAME",
        help="One implementation, from the second list above, which is compared with standard. "
        f"{default_implementations()} {SEVERAL}: the experiments {COMPARED_IN}.",
        show_default=False,
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        "--seq",
        metavar="TOKENS",
        help="Tokens per sequence, for example 8192 or 8k.",
        parser=token_count,
        show_default=False,
    ),
]
Sequences = Annotated[
    int | None,
    typer.Option("--batch", metavar="N", help="Number of sequences.", parser=positive_integer, show_default=False),
]
Direction = Annotated[Literal["forward", "backward", "both"], typer.Option("--pass", help="Pass to time.")]
By = Annotated[
    Literal["kernel"] | None,
    typer.Option(
        "--by",
        help="kernel: also show each op with its predicted time, its measured time and its kernels.",
        show_default=False,
    ),
]
Traced = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Write a Chrome trace of one call to a file.", show_default=False),
]


@prints_tables
def command(
    piece: Named,
    impl: Impl = None,
    model: ModelName = None,
    set: Set = None,
    seq: Tokens = None,
    batch: Sequences = None,
    dtype: DType = None,
    direction: Direction = "forward",
    device: Device = "auto",
    by: By = None,
    trace: Traced = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Time one piece of a model, and compare the time with a prediction, the machine's limits and plain torch.

    PIECE is one of

    {PIECES}

    --impl NAME is one of

    {CANDIDATES}

    The implementation is checked against plain torch in fp64 before it is timed. The exit code is 1 if the
    implementation gives a wrong result (INCORRECT) or raises an error (FAILED). The default shapes are smaller on a
    CPU.

    Examples:

      llmbench profile attention --impl flash

      llmbench profile norm --device cpu --seq 64

      llmbench profile block --device cpu --model smollm2-135m --seq 32 --pass both --by kernel

      llmbench profile decode --device cpu --model llama3-8b --seq 512 --batch 2 --format json
    """
    _refuse_several(piece, impl)
    need_torch("profile")
    from llmbench.bench.pieces import find_piece
    from llmbench.bench.profile import TRACE, candidate_names, profile, target_of

    check_file("--trace", trace, TRACE)
    check_file("--output", output)
    if trace is not None and output is not None and trace.absolute() == output.absolute():
        raise LLMBenchError(f"--output and --trace name the same file: {trace}", hint="use two different files")
    timed = find_piece(piece)
    spec = chosen_model(model, set)
    target = target_of(timed, spec, seq_len=seq, batch=batch, dtype=dtype, direction=direction, device=device)
    names = candidate_names(timed, impl, target.setting)
    with working(f"measuring {piece}"):
        measured = profile(timed, target.setting, names, by_kernel=by is not None or trace is not None)
    document = _document(
        timed,
        target,
        measured,
        {
            "piece": piece,
            "impl": impl,
            "model": model,
            "set": set or [],
            "seq_len": seq,
            "batch": batch,
            "dtype": dtype,
            "pass": direction,
            "device": device,
            "by": by,
        },
    )
    answer(document, format, output)
    if trace is not None:
        _save(measured, trace)
    fail_where_wrong(measured.rows)


command.__doc__ = (
    (command.__doc__ or "")
    .replace("{PIECES}", listed({name: about.what for name, about in PIECES.items()}))
    .replace("{CANDIDATES}", listed(CANDIDATES))
)


def _refuse_several(piece: str, impl: str | None) -> None:
    """Raise LLMBenchError if --impl names several implementations."""
    if impl is None or "," not in impl:
        return
    experiment = PIECES[piece].experiment if piece in PIECES else ""
    hint = f"`llmbench bench {experiment}` compares several" if experiment else "run the command once for each of them"
    raise LLMBenchError("--impl: one run times one implementation, next to standard", hint=hint)


def _save(measured: Profile, trace: Path) -> None:
    """Write the Chrome trace to the file `trace`, and write its path to stderr."""
    if measured.recording is None:
        raise CannotRunError(f"no trace: {measured.unrecorded}")
    measured.recording.save(trace)
    say(f"wrote {trace}")


def _document(piece: Piece, target: Target, measured: Profile, inputs: dict[str, Any]) -> Document:
    import msgspec

    baseline = measured.rows[-1]
    lines = [Line(row, measured.limits, baseline) for row in measured.rows]
    ops = None
    if measured.ops is not None:
        ops = [op._asdict() | {"launches": [launch._asdict() for launch in op.launches]} for op in measured.ops]
    blocks = [_block(piece, target, measured, lines)]
    if inputs["by"] is not None:
        blocks.append(_kernel_block(target.setting, measured))
    return Document(
        command="profile",
        version=2,
        inputs=inputs,
        rows_key="implementations",
        rows=as_json(lines),
        blocks=blocks,
        environment=msgspec.to_builtins(measured.environment),
        also={"reference_measurements": msgspec.to_builtins(measured.limits.references), "ops": ops},
        tables=[one_table(lines), *(block.table for block in blocks[1:] if block.table is not None)],
    )


def _title(piece: Piece, target: Target) -> str:
    """Return the lines that describe what is timed: the model, the piece and the shape."""
    setting = target.setting
    tokens = plural(setting.seq_len, "token")
    shape = [
        piece.of(setting.spec),
        target.layer,
        setting.direction,
        f"batch {setting.batch:,}",
        tokens,
        setting.dtype,
    ]
    return f"{headline(target.model)}\n{piece.name}: {piece.what}\n{' · '.join(filter(None, shape))}"


def _block(piece: Piece, target: Target, measured: Profile, lines: list[Line]) -> Block:
    first = measured.rows[0]
    below = machine(measured.environment, measured.limits)
    if first.work_flops is not None and first.work_bytes:
        per_byte = f"{first.work_flops:,} FLOPs, {first.work_flops / first.work_bytes:,.1f} FLOPs per byte"
        products = per_byte if first.work_flops else "no matrix products"
        bound = measured.limits.bound(first)
        below.append(f"work: {first.work_bytes:,} bytes, {products}; limited by {bound} on this machine")
    below += [f"{row.implementation} ran {', '.join(row.kernels)}" for row in measured.rows if row.kernels]
    machines = machine_notes(measured.limits, measured.rows)
    notes = [*paired_notes(lines), *target.notes, *target.model.notes, *measured.notes, *machines]
    finding = about_table(lines, measured.rows[-1].implementation)
    return Block(
        answer=" ".join(filter(None, (measured.caution, target.change, finding))),
        headline=_title(piece, target),
        table=table(fitted((IMPLEMENTATION, *METRICS), lines), lines),
        lines=[*below, *approximate_lines(target.model.approximate)],
        notes=notes,
    )


class OpLine(NamedTuple):
    """A row of the table of `--by kernel`: an op, a kernel of an op, or the total. An unknown number is None."""

    name: str
    runs: int | None
    predicted_s: float | None
    measured_s: float | None
    share: float


OP_FIELDS: tuple[Field[OpLine], ...] = (
    Field("name", "op and its kernels", wraps=True),
    Field("measured_s", "measured time", "ms", scale="time"),
    Field("share", "share", "percent"),
    Field("predicted_s", "predicted time", "ms", scale="time"),
    Field("runs", "runs", "count", spare=1),
)


def _kernel_block(setting: Setting, measured: Profile) -> Block:
    """Return a table with the ops, the slowest op first. Below each op stand the kernels that the op launched."""
    if measured.ops is None:
        return Block(lines=[f"no kernel times: {measured.unrecorded}"])
    total = sum(op.measured_s for op in measured.ops) or 1.0
    lines = []
    for op in measured.ops:
        measured_s = op.measured_s if op.launches else None
        lines.append(OpLine(op.op, None, op.predicted_s, measured_s, op.measured_s / total))
        shown = [launch for launch in op.launches if launch.total_s >= SMALLEST_SHARE * total]
        for launch in shown:
            backward = " (backward)" if launch.backward else ""
            seconds = launch.total_s
            lines.append(OpLine(f"  {launch.kernel}{backward}", launch.runs, None, seconds, seconds / total))
        rest = op.launches[len(shown) :]
        if shown and rest:
            seconds = sum(launch.total_s for launch in rest)
            runs = sum(launch.runs for launch in rest)
            lines.append(OpLine(f"  {len(rest)} more", runs, None, seconds, seconds / total))
    predicted = sum(op.predicted_s or 0.0 for op in measured.ops)
    slowed = "" if setting.device.type == "cuda" else " (the profiler slows down torch's ops)"
    slowest = measured.ops[0]
    return Block(
        answer=f"{slowest.op} has the largest share of the recorded time: {percent(slowest.measured_s / total)}.",
        headline=f"time of {measured.rows[0].implementation} by op and kernel{slowed}",
        table=table(fitted(OP_FIELDS, lines), lines, total=OpLine("total", None, predicted, total, 1.0)),
        lines=[
            "predicted time: least time that this run's reference measurements allow (roofline)",
            "–: the op is not in the op table, or launched no kernel of its own",
        ],
    )


SMALLEST_SHARE = 0.01
"""Kernels with a smaller share of the total time are summed in one row of the table. JSON lists all kernels."""
