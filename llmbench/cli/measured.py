"""Code that the measuring commands share: options, checks of output files, fields of rows, lines about the machine."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from llmbench.errors import CannotRunError, LLMBenchError
from llmbench.report.document import Table, table
from llmbench.report.fields import Field
from llmbench.report.units import Unit, percent, plural, si

if TYPE_CHECKING:
    from llmbench.bench.results.metrics import MachineLimits, Metrics
    from llmbench.measure.environment import Environment
    from llmbench.measure.results import Row, Scalar


def device_option(devices: str = "cpu, cuda or cuda:1", auto: str = "a GPU if there is one, else the CPU") -> Any:
    """Return the option --device. `devices`: the devices that the command accepts. `auto`: the meaning of `auto`."""
    return typer.Option("--device", metavar="DEVICE", help=f"Device: auto ({auto}), {devices}.")


Device = Annotated[str, device_option()]
DType = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option("--dtype", help="Number format. Default: bf16 on a GPU, fp32 on a CPU.", show_default=False),
]


def listed(names: Mapping[str, str]) -> str:
    """Return a paragraph for a help text: one line per name, with the description of the name.

    The first line is `\\b`, which stops typer from joining the lines.
    """
    width = max(map(len, names)) + 2
    lines = [
        textwrap.fill(f"{name:{width}}{what}", 76, initial_indent=" " * 4, subsequent_indent=" " * (4 + width))
        for name, what in names.items()
    ]
    return "\n".join(("\b", *lines))


def need_torch(command: str) -> None:
    """Raise CannotRunError unless torch is installed."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise CannotRunError(
            f"`llmbench {command}` needs PyTorch, which is not installed", hint="pip install 'llmbench[gpu]'"
        )


def fail_where_wrong(rows: Iterable[Row]) -> None:
    """Exit with code 1 if a row is INCORRECT or FAILED. Rows that are OOM or n/a do not change the exit code."""
    if any(row.status in ("INCORRECT", "FAILED") for row in rows):
        raise typer.Exit(1)


def _begins(path: Path, start: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(start)) == start


RESULTS = b'{"line":"'
"""The first bytes of every result file."""


def check_file(option: str, path: Path | None) -> None:
    """Raise LLMBenchError if the file of `option` cannot be written, or if it contains results, which would be lost.

    A command calls this function before it measures.
    """
    if path is None:
        return
    try:
        if path.is_dir():
            raise LLMBenchError(f"{option} {path} is a folder", hint="give the path of a file")
        if not path.absolute().parent.is_dir():
            raise LLMBenchError(f"{option} {path}: no such folder", hint="create the folder, or use another path")
        if path.exists():
            writable = os.access(path, os.W_OK)
            if path.is_file() and _begins(path, RESULTS):
                raise LLMBenchError(
                    f"{option} {path} contains results, which would be lost",
                    hint="use another file; `llmbench bench --resume` continues an existing result file",
                )
        else:
            TemporaryFile(dir=path.absolute().parent).close()
            writable = True
    except OSError:
        writable = False
    if not writable:
        raise LLMBenchError(f"{option} {path}: the file cannot be written")


class Line(NamedTuple):
    """A measured row, its metrics, and the figures that the experiment adds."""

    row: Row
    metrics: Metrics
    extra: Mapping[str, Scalar] = {}


def _metric(
    name: str, description: str, heading: str | None = None, unit: Unit = "text", **options: Any
) -> Field[Line]:
    def value(line: Line) -> Any:
        return getattr(line.metrics, name)

    options.setdefault("sparse", True)
    options.setdefault("scale", name if heading else "")
    return Field(name, heading, unit, value, description=description, **options)


def _status(line: Line) -> str | None:
    """Return the status of a row without a time, which tables show in place of the time. Return None for other rows."""
    return None if line.row.status == "ok" else line.row.status


METRICS: tuple[Field[Line], ...] = (
    _metric("tokens_per_s", "tokens per second; null if the row has no value `tokens`", "tokens/s", "count"),
    _metric("seconds", "median time of one call", "time", "ms", scale="time", sparse=False, text=_status),
    _metric("p10_s", "10th percentile of the samples, in seconds"),
    _metric("p90_s", "90th percentile of the samples, in seconds"),
    _metric("iqr_s", "interquartile range of the samples, in seconds"),
    _metric("n", "number of samples"),
    _metric("spread", "interquartile range of the samples, as a share of the median", "spread", "percent", spare=4),
    _metric("flops_per_s", "achieved rate: FLOPs of one call / median time", "rate", "tflops_per_s", spare=1),
    _metric(
        "bytes_per_s",
        "achieved memory traffic: least bytes that one call must read and write / median time",
        "traffic",
        "gb_per_s",
        spare=6,
    ),
    _metric(
        "share_of_limit",
        "least time that the reference measurements allow (roofline) / median time. The reference measurements come "
        "from the session that measured the row",
        "share of limit",
        "percent",
    ),
    _metric(
        "share_of_datasheet",
        "least time that the datasheet allows (roofline) / median time",
        "share of datasheet",
        "percent",
        spare=2,
    ),
    _metric(
        "peak_bytes",
        "peak memory of one call: its inputs and everything that it allocates",
        "peak",
        "gib",
        scale="bytes",
    ),
    _metric(
        "need_bytes", "peak memory of one call that the op table predicts", "analytic", "gib", spare=3, scale="bytes"
    ),
    _metric(
        "predicted_s",
        "predicted time: sum of the least times of the implementation's ops",
        "predicted",
        "ms",
        scale="time",
    ),
    _metric("prediction_error", "(predicted time − measured time) / measured time", "pred. error", "percent", spare=5),
    _metric("joules_per_call", "energy of the whole GPU board per call", "energy per call", "joules", spare=7),
    _metric("joules_per_token", "energy of the whole GPU board per token", "energy per token", "joules"),
    _metric("speedup_p10", "10th percentile of the speed-up over the pairs of samples"),
    _metric("speedup_p90", "90th percentile of the speed-up over the pairs of samples"),
)
"""The metrics of a measured row. Fields with the same `scale` are shown in the same unit."""

IMPLEMENTATION: Field[Line] = Field(
    "implementation", "implementation", value=lambda line: line.row.implementation, unbroken=True
)


def speed_up(heading: str) -> Field[Line]:
    """Return the field for the speed-up: time of the baseline / time of the row."""
    description = "time of the baseline / time of the row: median of the ratios of paired samples"
    return Field("speedup", heading, "ratio", lambda line: line.metrics.speedup, description=description, sparse=True)


DERIVED = (*METRICS, speed_up("speed-up"))
"""The fields of `derived` in JSON, which tools/json_reference.py documents."""


def extra_field(key: str, heading: str, unit: Unit) -> Field[Line]:
    """Return the field of a figure that one experiment adds to its rows, under `key` of `Line.extra`."""
    return Field(key, heading, unit, lambda line: line.extra.get(key), sparse=True)


def one_table(lines: Sequence[Line], extra: Sequence[Field[Line]] = ()) -> Table:
    """Return a table for CSV. All rows have the same columns: case, status, `extra` and metrics."""

    def case_field(name: str) -> Field[Line]:
        return Field(name, value=lambda line: line.row.case.get(name))

    def row_field(name: str) -> Field[Line]:
        return Field(name, value=lambda line: getattr(line.row, name))

    names = dict.fromkeys(name for line in lines for name in line.row.case)
    fields = [
        row_field("experiment"),
        *map(case_field, names),
        *map(row_field, ("implementation", "status", "reason")),
        *extra,
        *METRICS,
        speed_up("speed-up"),
        Field("notes", value=lambda line: line.row.measurement.remarks() if line.row.measurement else []),
    ]
    return table(fields, lines)


def place(environment: Environment) -> str:
    """Return a text with the device and the version of torch."""
    where = environment.device
    if where == "cpu":
        where = f"{environment.cpu or 'a CPU'}, {plural(environment.threads, 'thread')}"
    return f"{where} · torch {environment.torch}"


def machine(environment: Environment, limits: MachineLimits, rows: Iterable[Row] = ()) -> list[str]:
    """Return lines about the device, the reference measurements, the datasheet, and rows that exceed their limit."""
    from llmbench.measure.measurement import merged_remarks

    references = limits.references
    rates = ", ".join(
        (
            f"{si(references.matmul.per_s)}FLOP/s ({references.matmul.description})",
            f"{si(references.copy.per_s)}B/s copy",
            f"{si(references.read.per_s)}B/s read",
            f"{1e6 * references.launch.unit_s:.1f} µs per launch",
        )
    )
    lines = [place(environment), f"reference measurements of this run: {rates}"]
    named = ("matrix product", references.matmul), ("copy", references.copy), ("read", references.read)
    remarks = merged_remarks((name, reference.measurement.remarks_by_kind()) for name, reference in named)
    lines += [f"reference measurement of {remark}" for remark in remarks]
    if limits.datasheet is not None:
        share = percent(references.matmul.per_s / limits.datasheet.flops_per_s)
        peak, memory = (si(rate) for rate in limits.datasheet)
        lines.append(
            f"datasheet ({environment.datasheet}): {peak}FLOP/s, {memory}B/s; matrix products reach {share} of the peak"
        )
    causes = {limits.exceeded_by(row) for row in rows}
    if "a cache" in causes:
        lines.append(
            "share of limit above 100%: the data stayed in a cache between calls, but the limit assumes memory reads"
        )
    if "the machine" in causes:
        lines.append(
            "share of limit above 100%: the machine was slower when its limits were measured (turbo or other load)"
        )
    return lines
