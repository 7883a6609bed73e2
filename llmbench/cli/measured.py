"""Code that the measuring commands share: options, checks of output files, fields of rows, lines about the machine."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module, util
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from llmbench.bench.results.metrics import METRICS, Line
from llmbench.cli.messages import saying_after
from llmbench.cli.options import MODEL_HELP, load
from llmbench.cli.written import refuse_loss
from llmbench.errors import CannotRunError, LLMBenchError, install_hint
from llmbench.report.document import Table, table
from llmbench.report.fields import Field
from llmbench.report.units import percent, plural, si

if TYPE_CHECKING:
    from llmbench.bench.experiments.experiment import Column
    from llmbench.bench.results.metrics import MachineLimits
    from llmbench.measure.environment import Environment
    from llmbench.measure.ranks import Processes, Ranks
    from llmbench.measure.results import Row
    from llmbench.spec.model import ModelSpec


def device_option(
    devices: str = "cpu, cuda or cuda:1",
    auto: str = "a GPU if there is one, else the CPU",
    *,
    names: Sequence[str] = ("auto", "cpu", "cuda", "cuda:1"),
) -> Any:
    """Return the option --device, which checks the name before the command imports torch.

    `devices`: text about the devices. `auto`: the meaning of `auto`. `names`: the devices that the command accepts;
    `cuda:1` stands for any GPU with a number.
    """

    def parse(text: str) -> str:
        kind, _, number = text.partition(":")
        if text in names or (kind == "cuda" and number.isascii() and number.isdigit() and "cuda:1" in names):
            return text
        listed = f"choose from {', '.join(names)}"
        if text == "meta":
            raise LLMBenchError("--device meta cannot be timed: its tensors have no memory", hint=listed)
        meant = {"gpu": "a GPU is `cuda`: ", "nvidia": "a GPU is `cuda`: ", "cpu": "write `cpu` without a number: "}
        raise LLMBenchError(f"unknown device `{text}`", hint=meant.get(kind.lower(), "") + listed)

    return typer.Option("--device", metavar="DEVICE", help=f"Device: auto ({auto}), {devices}.", parser=parse)


Device = Annotated[str, device_option()]
DType = Annotated[
    Literal["fp32", "bf16", "fp16"] | None,
    typer.Option("--dtype", help="Number format. Default: bf16 on a GPU, fp32 on a CPU.", show_default=False),
]


ModelName = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help=f"{MODEL_HELP} The shapes are those of this model.", show_default=False
    ),
]


def chosen_model(model: str | None, changes: list[str] | None) -> ModelSpec | None:
    """Return the model of --model, changed by --set. Return None without --model.

    Raises LLMBenchError if there is --set without --model.
    """
    if model is not None:
        return load(model, changes)
    if changes:
        raise LLMBenchError("--set changes a model, but --model is missing", hint="give the model with --model")
    return None


def listed(names: Mapping[str, str]) -> str:
    """Return a paragraph for a help text: a line per name, with the description of the name.

    The first line is `\\b`, which stops typer from joining the lines. `llmbench.cli.help` breaks long lines.
    """
    return "\n".join(("\b", *(f"    {name}  {what}" for name, what in names.items())))


def need_torch(command: str) -> None:
    """Raise CannotRunError unless torch is installed and can be imported. Check the cache folder of torch's compiler
    before torch is imported."""
    from llmbench.measure.compiler_cache import compiler_cache_fault

    if util.find_spec("torch") is None:
        raise CannotRunError(f"`llmbench {command}` needs PyTorch, which is not installed", hint=install_hint("gpu"))
    compiler_cache_fault()
    import_torch()


def import_torch() -> None:
    """Import torch, which is installed. Raises CannotRunError if the import fails."""
    try:
        import_module("torch")
    except Exception as problem:  # a broken installation, or a wrong value of a variable such as TORCH_LOGS
        reason = " ".join(str(problem).split())[:300]
        raise CannotRunError(f"PyTorch cannot be imported: {type(problem).__name__}: {reason}") from None


def fail_where_wrong(rows: Iterable[Row]) -> None:
    """Exit with code 1 if a row is INCORRECT or FAILED. Rows that are OOM or n/a do not change the exit code."""
    if any(row.status in ("INCORRECT", "FAILED") for row in rows):
        raise typer.Exit(1)


def check_file(option: str, path: Path | None, replaceable: re.Pattern[bytes] | None = None) -> None:
    """Raise LLMBenchError if the file of `option` cannot be written, or if a content would be lost.

    A command calls this function before it measures. `replaceable`: the beginning of files that may be replaced.
    """
    if path is None:
        return
    if path == Path("-"):
        raise LLMBenchError(f"{option} -: results need a file", hint=f"give a name, such as {option} results.jsonl")
    try:
        if path.is_fifo():
            raise LLMBenchError(f"{option} {path} is a pipe", hint="give the path of a file")
        if path.is_dir():
            raise LLMBenchError(f"{option} {path} is a folder", hint="give the path of a file")
        if not path.absolute().parent.is_dir():
            raise LLMBenchError(f"{option} {path}: no such folder", hint="create the folder, or use another path")
        if path.exists():
            writable = os.access(path, os.W_OK)
            refuse_loss(option, path, replaceable)
        else:
            TemporaryFile(dir=path.absolute().parent).close()
            writable = True
    except OSError:
        writable = False
    if not writable:
        raise LLMBenchError(f"{option} {path}: the file cannot be written")


LONG_WAIT_S = 5.0
"""The time in seconds after which a command says that it waits for other processes."""


def join_ranks(processes: Processes, device: Any, command: str) -> tuple[Ranks, Any]:
    """Join the other processes of torchrun (see `llmbench.measure.ranks.join`), and say so if they do not come soon.

    `device`: a torch.device. Returns the ranks, and the torch.device of this process.
    """
    from llmbench.measure.ranks import COLLECTIVE_TIMEOUT, join

    size, limit = os.environ.get("WORLD_SIZE", "1"), COLLECTIVE_TIMEOUT.seconds
    with saying_after(LONG_WAIT_S, f"waiting up to {limit} s for the other processes (WORLD_SIZE is {size})"):
        return join(processes, device, command)


IMPLEMENTATION: Field[Line] = Field("implementation", "candidate", value=lambda line: line.row.implementation)


def extra_field(column: Column) -> Field[Line]:
    """Return the field of a figure that one experiment adds to its rows."""
    return Field(
        column.key,
        column.heading,
        column.unit,
        lambda line: line.extra.get(column.key),
        sparse=True,
        spare=column.spare,
    )


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
        Field("notes", value=lambda line: line.row.measurement.remarks() if line.row.measurement else []),
    ]
    return table(fields, lines)


def place(environment: Environment) -> str:
    """Return a text with the device and the version of torch."""
    where = environment.device
    if where == "cpu":
        where = f"{environment.cpu or 'a CPU'}, {plural(environment.threads, 'thread')}"
    return f"{where} · torch {environment.torch}"


def machine(environment: Environment, limits: MachineLimits) -> list[str]:
    """Return lines about the device, the reference measurements and the datasheet."""
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
    if limits.datasheet is not None:
        share = percent(references.matmul.per_s / limits.datasheet.flops_per_s)
        peak, memory = (si(rate) for rate in limits.datasheet)
        lines.append(
            f"datasheet ({environment.datasheet}): {peak}FLOP/s, {memory}B/s; matrix products reach {share} of the peak"
        )
    return lines


def speedup_note(baseline: str, candidate: str) -> str:
    """Return the note that explains the speed-up: what is divided, and why it can differ from the times beside it."""
    return (
        f"speed-up: time of {baseline} / time of {candidate}, median over the pairs of samples. If the samples are "
        "noisy, it differs from the ratio of the two times"
    )


VISIBLE = 1.1
"""The speed-up and the ratio of the median times differ visibly if one is larger by this factor."""


def paired_notes(lines: Iterable[Line]) -> list[str]:
    """Return a note on the rows whose speed-up differs visibly from the ratio of the two times in the table."""

    def differs(line: Line) -> bool:
        if not line.speedup or not line.seconds or line.baseline is None or not line.baseline.seconds:
            return False
        quotient = line.speedup / (line.baseline.seconds / line.seconds)
        return not 1 / VISIBLE <= quotient <= VISIBLE

    names = list(dict.fromkeys(line.row.implementation for line in lines if differs(line)))
    if not names:
        return []
    return [
        f"the speed-up of {', '.join(names)} is not the ratio of the times: it is the median over pairs of samples, "
        "which were taken one after the other, and the speed of the machine changed between pairs"
    ]


def machine_notes(limits: MachineLimits, rows: Iterable[Row]) -> list[str]:
    """Return notes on rows that exceed their limit, and on disturbed reference measurements."""
    from llmbench.measure.measurement import merged_remarks

    references, notes = limits.references, []
    causes = {limits.exceeded_by(row) for row in rows}
    if "a cache" in causes:
        notes.append(
            "share of limit above 100%: the data stayed in a cache between calls, but the limit assumes memory reads"
        )
    if "the machine" in causes:
        notes.append(
            "share of limit above 100%: the machine was slower when its limits were measured (turbo or other load)"
        )
    named = ("matrix product", references.matmul), ("copy", references.copy), ("read", references.read)
    remarks = merged_remarks((name, reference.measurement.remarks_by_kind()) for name, reference in named)
    return [*notes, *(f"reference measurement of {remark}" for remark in remarks)]
