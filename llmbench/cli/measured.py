"""What the measuring commands share: a way to torch, how rows are shown, what the machine was found to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.report.document import Column, Table
from llmbench.report.units import fitting, percent, plural, si

if TYPE_CHECKING:
    from llmbench.bench.results.metrics import Figures, Yardsticks
    from llmbench.measure.environment import Environment
    from llmbench.measure.results import Row, Scalar

    Own = Sequence[tuple[Column, Callable[[Row], Scalar]]]
    """Columns that an experiment adds, and their figures."""

Device = Annotated[str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda, cuda:1; auto takes a GPU.")]
DType = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option("--dtype", help="Format; bf16 on a GPU and fp32 on a CPU unless given.", show_default=False),
]


def need_torch(command: str) -> None:
    """Raise CannotRunError unless torch is there."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise CannotRunError(
            f"`llmbench {command}` needs PyTorch, which is not installed", hint="pip install 'llmbench[gpu]'"
        )


def fail_where_wrong(rows: Iterable[Row]) -> None:
    """Exit with code 1 where a row is INCORRECT or FAILED. What has no room or does not exist here is no fault."""
    if any(row.status in ("INCORRECT", "FAILED") for row in rows):
        raise typer.Exit(1)


def _begins(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


RESULTS = b'{"line":"'
"""How a file of results begins, whichever line is its first."""


def check_file(option: str, path: Path | None) -> None:
    """Raise LLMBenchError, before anything is measured, where no file could be written, or results would be lost."""
    if path is None:
        return
    try:
        if path.is_dir():
            raise LLMBenchError(f"{option} {path} is a folder", hint="name a file in it")
        if not path.absolute().parent.is_dir():
            raise LLMBenchError(f"{option} {path}: no such folder")
        if path.exists():
            writable = os.access(path, os.W_OK)
            if path.is_file() and _begins(path, RESULTS):
                raise LLMBenchError(
                    f"{option} {path} holds results, which would be lost",
                    hint="name another file; `llmbench bench --resume` goes on with it",
                )
        else:
            TemporaryFile(dir=path.absolute().parent).close()
            writable = True
    except OSError:
        writable = False
    if not writable:
        raise LLMBenchError(f"{option} {path}: no file can be written there")


COLUMNS = {
    "tokens_per_s": Column("tokens/s", "count", sparse=True),
    "seconds": Column("time", "ms"),
    "spread": Column("spread", "percent", sparse=True, spare=4),
    "flops_per_s": Column("rate", "tflops_per_s", sparse=True, spare=1),
    "bytes_per_s": Column("traffic", "gb_per_s", sparse=True, spare=6),
    "of_anchor": Column("of limit", "percent", sparse=True),
    "of_datasheet": Column("of datasheet", "percent", sparse=True, spare=2),
    "peak_bytes": Column("peak", "gib", sparse=True),
    "need_bytes": Column("analytic", "gib", sparse=True, spare=3),
    "predicted_s": Column("predicted", "ms", sparse=True),
    "off": Column("off", "percent", sparse=True, spare=5),
    "joules_per_call": Column("energy a call", "joules", sparse=True, spare=7),
    "joules_per_token": Column("energy a token", "joules", sparse=True),
}
TOGETHER = {"peak_bytes": "need_bytes", "need_bytes": "peak_bytes", "seconds": "predicted_s", "predicted_s": "seconds"}
"""Columns that stand beside each other to be compared, and so have one unit."""


def columns_of(found: Iterable[Figures]) -> dict[str, Column]:
    """Columns by the figure that each shows, in units that suit these figures."""
    values = [each._asdict() for each in found]

    def fitted(name: str, column: Column) -> Column:
        of_both = [each[key] for each in values for key in (name, TOGETHER.get(name, name))]
        return msgspec.structs.replace(column, unit=fitting(column.unit, of_both))

    return {name: fitted(name, column) for name, column in COLUMNS.items()}


def cells(row: Row, figures: Figures, columns: Iterable[str]) -> list[Any]:
    """A row's figures; its status in place of a time where it has none."""
    found = figures._asdict() | ({} if row.status == "ok" else {"seconds": row.status})
    return [found[name] for name in columns]


def one_table(rows: Sequence[Row], known: Sequence[Figures], own: Own = ()) -> Table:
    """All rows under the same columns, for machines: what each is about, how it ended, what `own` adds, its figures."""
    fields = dict.fromkeys(name for row in rows for name in row.case)
    columns = [
        *map(Column, ("experiment", *fields, "implementation", "status", "reason")),
        *(column for column, _ in own),
        *COLUMNS.values(),
        Column("speed-up", "ratio"),
        Column("note"),
    ]
    cells = [
        [
            *(row.experiment, *map(row.case.get, fields), row.implementation, row.status, row.reason),
            *(figure(row) for _, figure in own),
            *(getattr(figures, name) for name in (*COLUMNS, "speedup")),
            "; ".join(row.measurement.remarks()) if row.measurement else None,
        ]
        for row, figures in zip(rows, known, strict=True)
    ]
    return Table(columns=columns, rows=cells)


def place(environment: Environment) -> str:
    """What something was measured on, and by which torch."""
    where = environment.device
    if where == "cpu":
        where = f"{environment.cpu or 'a CPU'}, {plural(environment.threads, 'thread')}"
    return f"{where} · torch {environment.torch}"


def machine(environment: Environment, yardsticks: Yardsticks, rows: Iterable[Row] = ()) -> list[str]:
    """What rows were measured on, and what that could do in this run."""
    from llmbench.measure.measurement import merged_remarks

    references = yardsticks.references
    rates = ", ".join(
        (
            f"{si(references.matmul.per_s)}FLOP/s ({references.matmul.description})",
            f"{si(references.copy.per_s)}B/s copying",
            f"{si(references.read.per_s)}B/s reading",
            f"{1e6 * references.launch.unit_s:.1f} µs a launch",
        )
    )
    lines = [place(environment), f"limits, measured in this run: {rates}"]
    named = ("products", references.matmul), ("copying", references.copy), ("reading", references.read)
    lines += [
        f"limits of {line}"
        for line in merged_remarks((name, each.measurement.remarks_by_kind()) for name, each in named)
    ]
    if yardsticks.datasheet is not None:
        share = percent(references.matmul.per_s / yardsticks.datasheet.flops_per_s)
        peak, memory = (si(rate) for rate in yardsticks.datasheet)
        lines.append(f"datasheet ({environment.datasheet}): {peak}FLOP/s, {memory}B/s; products reach {share}")
    beaten = {yardsticks.beaten_by(row) for row in rows}
    if "a cache" in beaten:
        lines.append("over 100% of limit: data that stay in a cache between calls; the limit is memory's")
    if "the machine" in beaten:
        lines.append("over 100% of limit, by no cache: the machine did more then than while its limits were measured")
    return lines
