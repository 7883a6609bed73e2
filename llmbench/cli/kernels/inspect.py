"""`llmbench kernels inspect`: compile the configurations of the Triton kernels, and read the machine code."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from llmbench.cli.kernels.arguments import DTypes, Names, known_names, named_formats, values_of
from llmbench.cli.kernels.progress import with_progress
from llmbench.cli.kernels.requirements import need_triton
from llmbench.cli.options import As, Output, answer, positive_integer, prints_tables
from llmbench.measure.environment import packages, ptxas
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, record, records
from llmbench.report.units import Unit, plural

if TYPE_CHECKING:
    from llmbench.kernels.proof.inspect import Compiled
    from llmbench.kernels.proof.machine_code import Loop


def _if_compiled(name: str, heading: str | None, unit: Unit, description: str) -> Field[Compiled]:
    """Return a field with a figure of the compiled kernel. The value is None if the configuration was not compiled."""
    return Field(
        name, heading, unit, lambda row: getattr(row, name) if row.registers else None, description=description
    )


class LoopOf(NamedTuple):
    """A hot loop and the compiled kernel that it belongs to."""

    compiled: Compiled
    loop: Loop


def _instructions(name: str, heading: str, description: str) -> Field[LoopOf]:
    """Return a field with the number of instructions of one class, per warp and loop iteration."""
    return Field(name, heading, "count", lambda row: row.loop.counts[name], description=description, spare=1)


LOOPS: tuple[Field[LoopOf], ...] = (
    Field("function", "function", in_json=False, value=lambda row: row.compiled.function),
    Field("config", "configuration", in_json=False, wraps=True, value=lambda row: row.compiled.config),
    Field(
        "instructions",
        "instructions",
        "count",
        lambda row: row.loop.instructions,
        description="number of instructions that a warp executes in one iteration of the loop",
    ),
    _instructions("tensor", "tensor", "number of tensor-core instructions in `instructions`"),
    _instructions("mufu", "MUFU", "number of exponentials, reciprocals and other special functions in `instructions`"),
    _instructions("fp32", "fp32", "number of fp32 additions, products, comparisons and selections in `instructions`"),
    _instructions("memory", "memory", "number of loads, stores and copies in `instructions`"),
    _instructions("barrier", "barrier", "number of barriers and waits in `instructions`"),
    _instructions("other", "other", "number of all other instructions: integers, addresses, conversions, jumps"),
    Field(
        "limit",
        "limited by",
        value=lambda row: row.loop.limit,
        description="the hardware unit that needs the most cycles: issue, special functions, tensor cores or shared "
        "memory",
    ),
    Field(
        "limit_cycles",
        "cycles",
        "count",
        lambda row: round(row.loop.cycles[row.loop.limit]),
        description="cycles that the unit `limit` needs for one iteration of one block; the iteration takes at least "
        "as long",
    ),
    Field(
        "tensor_share",
        "tensor cores",
        "percent",
        lambda row: row.loop.cycles["tensor cores"] / row.loop.cycles[row.loop.limit],
        description="largest possible utilisation of the tensor cores in the loop",
    ),
    Field(
        "products",
        description="number of asynchronous matrix products in one iteration",
        value=lambda row: row.loop.products,
    ),
    Field(
        "waits", description="number of instructions that wait for a matrix product", value=lambda row: row.loop.waits
    ),
    Field(
        "serialised",
        "products",
        value=lambda row: row.loop.serialised,
        text=lambda row: "serialised" if row.loop.serialised else f"{row.loop.products}, {row.loop.waits} waits",
        description="whether the compiled loop waits after nearly every product, so that products do not overlap",
    ),
)
INSPECT: tuple[Field[Compiled], ...] = (
    Field("kernel", description="name of the kernel"),
    Field("function", "function", description="name of the compiled function"),
    Field("case", description="the shape that the function was compiled for"),
    Field("dtype", description="the number format that the function was compiled for"),
    Field("config", "configuration", wraps=True, description="the configuration: tile sizes and launch options"),
    Field("note", description="reason why the kernel has this configuration"),
    Field("arch", value=lambda row: f"sm_{row.arch}", description="the GPU architecture"),
    Field(
        "shipped",
        "shipped",
        text=lambda row: None if row.shipped else "",
        description="whether a launch uses this configuration by default; false for the other candidate configurations",
    ),
    Field("num_warps", description="warps per block"),
    Field("num_stages", description="stages of the software pipeline"),
    _if_compiled("registers", "registers", "count", "registers per thread; null if the configuration was not compiled"),
    _if_compiled(
        "spilled_bytes", "spilled", "bytes", "bytes per thread that the compiler moved from registers to memory"
    ),
    Field("instruction", "tensor cores", description="the tensor-core instruction that the function uses, or null"),
    _if_compiled("shared_bytes", "shared", "kib", "bytes of shared memory per block"),
    _if_compiled("blocks", "blocks/SM", "count", "number of blocks that run at the same time on a multiprocessor (SM)"),
    _if_compiled(
        "occupancy",
        "occupancy",
        "percent",
        "number of warps in these blocks, as a share of the most warps that a multiprocessor can run",
    ),
    Field(
        "loops",
        value=lambda row: [record(LOOPS, LoopOf(row, loop)) for loop in row.loops],
        description="list of the function's hot loops on sm_90, each with the fields of the next table; empty on other "
        "architectures",
    ),
    Field("faults", value=lambda row: list(row.faults), description="faults that make `inspect` exit with code 1"),
    Field(
        "allowed",
        value=lambda row: list(row.allowed),
        description="faults that the kernel allows, each with its reason; if the architecture cannot run the "
        "configuration, a line that says so",
    ),
    Field("ptxas", value=lambda row: ptxas(row.arch), description="version of the assembler `ptxas`"),
)


@prints_tables
def inspect_kernels(
    names: Names = None,
    arch: Annotated[
        str,
        typer.Option("--arch", metavar="LIST", help="GPU architectures, separated by commas: sm_80, sm_90, sm_100."),
    ] = "sm_90",
    dtype: DTypes = "bf16",
    shipped: Annotated[
        bool, typer.Option("--shipped", help="Compile only the configuration that each kernel uses by default.")
    ] = False,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            metavar="N",
            help="Number of parallel compiler processes. Default: one per core.",
            parser=positive_integer,
        ),
    ] = None,
    format: As = "table",
    output: Output = None,
) -> None:
    """Compile the configurations of each kernel for the shapes of real models, without a GPU.

    The table shows registers, spilled bytes, shared memory, occupancy, and the instructions of each hot loop. The exit
    code is 1 if a configuration has a fault: it spills registers, needs more shared memory than a block can have,
    multiplies matrices without the tensor-core instruction of the architecture, or waits after each matrix product. A
    kernel can allow a fault with a reason. An allowed fault does not change the exit code.

    Examples:

      llmbench kernels inspect glu --shipped

      llmbench kernels inspect rope --shipped --arch sm_80,sm_100 --jobs 1
    """
    need_triton()
    os.environ.pop("TRITON_INTERPRET", None)  # with this variable, Triton interprets kernels instead of compiling them
    from llmbench.kernels.proof.inspect import inspect, shapes_of

    arches = _arches(arch)
    formats = named_formats(dtype)
    workers = jobs or os.cpu_count() or 1
    chosen = known_names(names)
    compiled = inspect(chosen, arches, formats, workers, shipped=shipped)
    shapes = len(shapes_of(chosen, arches, formats))
    rows = list(with_progress(compiled, "compiling", lambda row: (row.kernel, row.case, row.dtype, row.arch), shapes))
    document = Document(
        command="kernels.inspect",
        inputs={"names": names or [], "arch": [f"sm_{n}" for n in arches], "dtype": dtype, "shipped": shipped},
        rows_key="configurations",
        environment={"triton": packages()["triton"]},
        rows=records(INSPECT, rows),
        blocks=_compiled_blocks(rows),
        tables=[table(INSPECT, rows)],
    )
    answer(document, format, output)
    if any(row.faults for row in rows):
        raise typer.Exit(1)


def _compiled_blocks(compiled: list[Compiled]) -> list[Block]:
    """Return a table for each kernel, shape, format and architecture. Lines below the table list the faults."""
    groups: dict[tuple[str, str, str, int], list[Compiled]] = {}
    for row in compiled:
        groups.setdefault((row.kernel, row.case, row.dtype, row.arch), []).append(row)
    blocks = []
    for (name, case, dtype, number), rows in groups.items():
        lines = sorted({f"FAULT {row.function} {row.config}: {text}" for row in rows for text in row.faults})
        lines += sorted({f"allowed: {row.function} {text}" for row in rows for text in row.allowed})
        headline = f"{name} · {case} · {dtype} · sm_{number}"
        blocks.append(Block(headline=headline, table=table(INSPECT, rows), lines=lines))
        if loops := [LoopOf(row, loop) for row in rows for loop in row.loops]:
            blocks.append(Block(headline="hot loops: figures per warp and iteration", table=table(LOOPS, loops)))
    faulty = sum(bool(row.faults) for row in compiled)
    configurations = plural(sum(bool(row.config) for row in compiled), "configuration")
    found = f"{configurations} compiled, {faulty or 'none'} with faults."
    arches = dict.fromkeys(row.arch for row in compiled)
    assemblers = ", ".join(f"ptxas {ptxas(number)} for sm_{number}" for number in arches)
    blocks[0].answer = found
    return [*blocks, Block(lines=[f"Triton {packages()['triton']}, {assemblers}"])]


def _arches(text: str) -> list[int]:
    from llmbench.kernels.proof.inspect import ARCHITECTURES

    known = {f"sm_{number}": number for number in ARCHITECTURES}
    return values_of(text, known, option="--arch", noun="architecture")
