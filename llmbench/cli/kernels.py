"""`llmbench kernels`: what there is, whether it is right, and what the compiler makes of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from llmbench.cli.options import As, Output, answer
from llmbench.errors import CannotRunError, SpecError
from llmbench.measure.environment import packages, ptxas
from llmbench.report.document import Block, Column, Document, Table, table
from llmbench.report.fields import Field, records

if TYPE_CHECKING:
    import torch

    from llmbench.kernels.kernel import Kernel
    from llmbench.kernels.proof.inspect import Compiled

T = TypeVar("T")

command = typer.Typer(
    no_args_is_help=True,
    help="The Triton kernels: list them, check them, see what they compile to.",
    rich_markup_mode=None,
)

Names = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME]...", help="Kernels; all where none is named.", show_default=False)
]
DTypes = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="LIST",
        help="Formats, with commas between: bf16, fp16, fp32. A kernel that knows none of them is taken in its own.",
    ),
]


LIST: tuple[Field[Kernel], ...] = (
    Field("kernel", "kernel", value=lambda kernel: kernel.name, unbroken=True, description="its name"),
    Field("summary", "computes", wraps=True, description="what it computes"),
    Field(
        "dtypes",
        "formats",
        value=lambda kernel: [_short(dtype) for dtype in kernel.dtypes],
        description="the formats that it is checked in",
    ),
    Field(
        "backward",
        "backward",
        value=lambda kernel: bool(kernel.differentiable),
        description="whether it has a backward pass",
    ),
    Field("cases", "cases", "count", value=lambda kernel: len(kernel.cases), description="number of cases to check"),
    Field(
        "shapes", "shapes", "count", value=lambda kernel: len(kernel.shapes), description="number of shapes to compile"
    ),
)


def _short(dtype: torch.dtype) -> str:
    from llmbench.kernels.formats import short

    return short(dtype)


@command.command("list")
def list_kernels(format: As = "table", output: Output = None) -> None:
    """Every kernel: what it computes, its formats, how many cases prove it.

    Examples:

      llmbench kernels list

      llmbench kernels list --format json
    """
    _prepare()
    from llmbench.kernels.registry import KERNELS, kernel

    kernels = [kernel(name) for name in KERNELS]
    document = Document(
        command="kernels.list",
        inputs={},
        rows_key="kernels",
        rows=records(LIST, kernels),
        blocks=[Block(table=table(LIST, kernels))],
    )
    answer(document, format, output)


@command.command("check")
def check_kernels(
    names: Names = None,
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="cuda, or cpu for the interpreter; auto takes a GPU.")
    ] = "auto",
    dtype: DTypes = "bf16,fp16,fp32",
    seeds: Annotated[int, typer.Option("--seeds", metavar="N", help="Random inputs for each case.", min=1)] = 2,
    format: As = "table",
    output: Output = None,
) -> None:
    """Hold every case of a kernel, and its gradients, to a reference in fp64.

    The error may be twice that of plain torch in the same format, and one rounding. Buffers are NaN before a kernel
    writes them. Without a GPU the kernels run in Triton's interpreter. Exit code 1 where one is not within its budget.

    Examples:

      llmbench kernels check glu

      llmbench kernels check rope --dtype bf16 --seeds 8
    """
    if device not in ("auto", "cpu", "cuda"):
        raise SpecError(f"--device {device}: kernels run on `cpu` (interpreted) or `cuda`")
    _prepare()
    from llmbench.kernels.formats import gpu_name, short

    gpu = gpu_name()
    if device == "cuda" and gpu is None:
        raise CannotRunError("--device cuda: no GPU here", hint="--device cpu checks in Triton's interpreter")
    place = "cpu" if device == "cpu" or gpu is None else "cuda"
    if place == "cpu":
        _prepare_interpreter()
        os.environ["TRITON_INTERPRET"] = "1"  # read when the first kernel is loaded, which is now
    from llmbench.kernels.proof.check import check_all

    formats = _dtypes(dtype)
    found = list(_followed(check_all(_known(names), formats, seeds, place), "checking"))
    rows = [row.as_row() for row in found]
    wrong = [row for row in found if not row.passed]
    columns = [
        Column("kernel", name=True),
        Column("format"),
        Column("checks", "count"),
        Column("worst case", wraps=True),
        Column("of"),
        Column("error", "number"),
        Column("plain torch", "number"),
        Column("budget", "number"),
        Column("verdict"),
    ]
    cells = [
        [
            row.kernel,
            short(row.dtype),
            row.checks,
            row.case,
            row.worst.tensor,
            f"{row.worst.error:.1e}",
            f"{row.worst.plain_error:.1e}",
            f"{row.worst.budget:.1e}",
            "within budget" if row.passed else "WRONG",
        ]
        for row in found
    ]
    where = "in Triton's interpreter" if place == "cpu" else gpu
    lines = [f"{len(found) - len(wrong)} of {len(found)} within budget, {where}"]
    document = Document(
        command="kernels.check",
        inputs={"names": names or [], "device": place, "dtype": dtype, "seeds": seeds},
        rows_key="kernels",
        rows=rows,
        blocks=[Block(table=Table(columns=columns, rows=cells), lines=lines)],
    )
    answer(document, format, output)
    if wrong:
        raise typer.Exit(1)


@command.command("inspect")
def inspect_kernels(
    names: Names = None,
    arch: Annotated[str, typer.Option("--arch", metavar="LIST", help="Architectures: sm_80, sm_90, sm_100.")] = "sm_90",
    dtype: DTypes = "bf16",
    shipped: Annotated[
        bool, typer.Option("--shipped", help="Only what is launched, without configurations to choose from.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", metavar="N", help="Compilers at once; one a core.", min=1, show_default=False),
    ] = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Compile every configuration of every real shape, and show what came out. Needs no GPU.

    Exit code 1 where a kernel spills registers, asks for more shared memory than a block can have, or multiplies
    matrices without the tensor-core instruction of its architecture, unless a reason is given with the kernel.

    Examples:

      llmbench kernels inspect glu

      llmbench kernels inspect rope --arch sm_80,sm_90,sm_100
    """
    _prepare()
    os.environ.pop("TRITON_INTERPRET", None)  # what is interpreted has nothing to compile
    from llmbench.kernels.proof.inspect import inspect

    arches = _arches(arch)
    formats = _dtypes(dtype)
    workers = jobs or os.cpu_count() or 1
    found = list(_followed(inspect(_known(names), arches, formats, workers, shipped=shipped), "compiling"))
    faulty = [row for row in found if row.faults]
    document = Document(
        command="kernels.inspect",
        inputs={"names": names or [], "arch": [f"sm_{n}" for n in arches], "dtype": dtype, "shipped": shipped},
        rows_key="configurations",
        rows=[_compiled_row(row) for row in found],
        blocks=_compiled_blocks(found),
    )
    answer(document, format, output)
    if faulty:
        raise typer.Exit(1)


def _compiled_row(row: Compiled) -> dict[str, Any]:
    from dataclasses import asdict

    values = asdict(row) | {"arch": f"sm_{row.arch}", "occupancy": row.occupancy, "ptxas": ptxas(row.arch)}
    if not row.registers:  # nothing came out
        values |= dict.fromkeys(("registers", "spilled_bytes", "shared_bytes", "blocks", "occupancy"))
    return values | {"faults": list(row.faults), "allowed": list(row.allowed)}


def _compiled_blocks(found: list[Compiled]) -> list[Block]:
    """A table for every shape, in its format and for its architecture; a line under it for all that is not as it
    should be."""
    columns = [
        Column("function", name=True),
        Column("configuration", wraps=True),
        Column("shipped"),
        Column("registers", "count"),
        Column("spilled (B)", "count"),
        Column("shared (KiB)", "number"),
        Column("tensor cores"),
        Column("blocks/SM", "count"),
        Column("occupancy", "percent"),
    ]
    groups: dict[tuple[str, str, str, int], list[Compiled]] = {}
    for row in found:
        groups.setdefault((row.kernel, row.case, row.dtype, row.arch), []).append(row)
    blocks = []
    for (name, case, dtype, number), rows in groups.items():
        cells = [
            [
                row.function,
                row.config,
                "yes" if row.shipped else "",
                row.registers or None,
                row.spilled_bytes if row.registers else None,
                f"{row.shared_bytes / 1024:.1f}" if row.registers else None,
                row.instruction,
                row.blocks or None,
                row.occupancy or None,
            ]
            for row in rows
        ]
        lines = sorted({f"FAULT {row.function} {row.config}: {text}" for row in rows for text in row.faults})
        lines += sorted({f"allowed: {row.function} {text}" for row in rows for text in row.allowed})
        headline = f"{name} · {case} · {dtype} · sm_{number}"
        blocks.append(Block(headline=headline, table=Table(columns=columns, rows=cells), lines=lines))
    total = f"{sum(bool(row.config) for row in found)} compiled, {sum(bool(row.faults) for row in found)} with faults"
    arches = dict.fromkeys(row.arch for row in found)
    assemblers = ", ".join(f"ptxas {ptxas(number)} for sm_{number}" for number in arches)
    return [*blocks, Block(lines=[total, f"Triton {packages()['triton']}, {assemblers}"])]


def _prepare() -> None:
    """Raise CannotRunError unless torch and Triton are there."""
    from importlib.util import find_spec

    for package in ("torch", "triton"):
        if find_spec(package) is None:
            raise CannotRunError(
                f"`llmbench kernels` needs {package}, which is not installed", hint="pip install 'llmbench[gpu]'"
            )


def _prepare_interpreter() -> None:
    """Raise CannotRunError unless Triton's interpreter has a numpy that it can use."""
    from importlib import metadata
    from importlib.util import find_spec

    triton = metadata.version("triton")
    old = triton.startswith("3.6.")  # it takes the bounds of loops out of arrays in a way that numpy 2.4 refuses
    hint = "pip install 'numpy<2.4'" if old else "pip install numpy"
    if find_spec("numpy") is None:
        raise CannotRunError("Triton's interpreter needs numpy, which is not installed", hint=hint)
    numpy = metadata.version("numpy")
    if old and tuple(map(int, numpy.split(".")[:2])) >= (2, 4):
        raise CannotRunError(f"the interpreter of Triton {triton} cannot use numpy {numpy}", hint=hint)


def _known(names: list[str] | None) -> tuple[str, ...]:
    from llmbench.kernels.registry import KERNELS, kernel

    for name in names or ():
        kernel(name)
    return tuple(names or KERNELS)


def _dtypes(text: str) -> list[Any]:
    """The torch formats that a list names."""
    from llmbench.kernels.formats import FORMATS

    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in FORMATS:
            raise SpecError(f"--dtype {part}: no such format", hint=f"there is {', '.join(FORMATS)}")
    if not parts:
        raise SpecError("--dtype names no format", hint=f"there is {', '.join(FORMATS)}")
    return [FORMATS[part] for part in parts]


def _arches(text: str) -> list[int]:
    from llmbench.kernels.proof.inspect import ARCHITECTURES

    names = {f"sm_{number}": number for number in ARCHITECTURES}
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in names:
            raise SpecError(f"--arch {part}: no such architecture", hint=f"there is {', '.join(names)}")
    if not parts:
        raise SpecError("--arch names no architecture", hint=f"there is {', '.join(names)}")
    return [names[part] for part in parts]


def _followed(work: Iterable[T], doing: str) -> Iterator[T]:
    """The same, with a spinner and a count on stderr where that is a terminal."""
    import sys

    if not sys.stderr.isatty():
        yield from work
        return
    from rich.console import Console

    with Console(stderr=True).status(doing) as status:
        for done, each in enumerate(work, 1):
            status.update(f"{doing}: {done} done")
            yield each
