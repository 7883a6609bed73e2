"""`llmbench kernels`: list, check, compile and time the Triton kernels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer

from llmbench.cli.kernels_bench import bench_kernels
from llmbench.cli.measured import device_option, import_torch
from llmbench.cli.options import As, Output, answer, positive_integer, prints_tables
from llmbench.errors import CannotRunError, SpecError, install_hint
from llmbench.measure.environment import packages, ptxas
from llmbench.report.document import Block, Document, listing, table
from llmbench.report.fields import Field, record, records
from llmbench.report.units import Unit

if TYPE_CHECKING:
    from llmbench.kernels.proof.check import CheckResult
    from llmbench.kernels.proof.fuzz import Failure, FuzzResult
    from llmbench.kernels.proof.inspect import Compiled
    from llmbench.kernels.proof.machine_code import Loop

T = TypeVar("T")

command = typer.Typer(
    no_args_is_help=True,
    help="List, check, compile and time the Triton kernels.",
    rich_markup_mode=None,
)

command.command("bench")(bench_kernels)

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Names of kernels. Default: all kernels.", show_default=False),
]
DTypes = Annotated[
    str,
    typer.Option(
        "--dtype",
        metavar="LIST",
        help="Number formats, separated by commas: bf16, fp16, fp32. A kernel that supports none of these formats runs "
        "in all formats that it supports.",
    ),
]


class Listed(NamedTuple):
    """A row of `kernels list`. Without torch or Triton, only the name and the summary are known."""

    kernel: str
    summary: str
    dtypes: list[str] | None = None
    backward: bool | None = None
    cases: int | None = None
    shapes: int | None = None


LIST: tuple[Field[Listed], ...] = (
    Field("kernel", "kernel", description="name of the kernel"),
    Field("summary", "computes", wraps=True, description="the function that the kernel computes"),
    Field(
        "dtypes",
        "formats",
        spare=3,
        description="number formats of the inputs that the kernel supports. This field and the next ones are null if "
        "torch or Triton is not installed",
    ),
    Field("backward", "backward", description="whether the kernel has a backward pass"),
    Field("cases", "cases", "count", spare=2, description="number of cases that `check` runs"),
    Field("shapes", "shapes", "count", spare=1, description="number of shapes that `inspect` compiles"),
)
CHECK: tuple[Field[CheckResult], ...] = (
    Field("kernel", "kernel", description="name of the kernel"),
    Field(
        "dtype",
        "format",
        value=lambda row: str(row.dtype).removeprefix("torch."),
        text=lambda row: _short(row.dtype),
        description="number format of the inputs",
    ),
    Field(
        "checks",
        "checks",
        "count",
        description="number of tensors that were compared, over all cases and seeds",
        spare=1,
    ),
    Field(
        "worst_case",
        "worst case",
        value=lambda row: row.case,
        wraps=True,
        description="case with the largest error relative to its budget",
        spare=4,
    ),
    Field(
        "tensor",
        "tensor",
        value=lambda row: row.worst.tensor,
        description="tensor with the largest error in the worst case: an output or a gradient",
        spare=2,
    ),
    Field(
        "error",
        "error",
        "scientific",
        lambda row: row.worst.error,
        description="error of `tensor`, relative to the fp64 reference",
    ),
    Field(
        "plain_error",
        "plain torch",
        "scientific",
        lambda row: row.worst.plain_error,
        description="error of plain torch for `tensor` in the same number format",
        spare=3,
    ),
    Field(
        "budget",
        "budget",
        "scientific",
        lambda row: row.worst.budget,
        description="largest error of `tensor` that the check accepts",
    ),
    Field(
        "passed",
        "verdict",
        text=lambda row: "within budget" if row.passed else "WRONG",
        description="whether all tensors are within their budgets",
    ),
)

FAILURE: tuple[Field[Failure], ...] = (
    Field("repeat", value=lambda failure: failure.trial.expression, description="Python expression that repeats it"),
    Field("reason", description="the tensor that exceeds its budget, or the error that the kernel raised"),
    Field(
        "smaller",
        value=lambda failure: failure.smaller.expression if failure.smaller else None,
        description="Python expression for a smaller case that fails too; null if the search found none",
    ),
)
FUZZ: tuple[Field[FuzzResult], ...] = (
    *CHECK[:2],
    Field("trials", "cases", "count", description="number of random cases that ran"),
    *CHECK[2:],
    Field(
        "failures",
        value=lambda row: records(FAILURE, row.failures),
        description="list of the cases that failed, each with the fields of the next table",
    ),
)


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


def _short(dtype: Any) -> str:
    """Return the short name of a torch dtype, for example bf16."""
    from llmbench.kernels.formats import short

    return short(dtype)


@command.command("list")
@prints_tables
def list_kernels(format: As = "table", output: Output = None) -> None:
    """List the kernels, with the function that each kernel computes.

    The table also shows the number formats of each kernel, the number of cases that `check` runs, and the number of
    shapes that `inspect` compiles.

    Examples:

      llmbench kernels list

      llmbench kernels list --format json
    """
    from llmbench.kernels.registry import KERNELS

    lines = []
    if (package := _missing()) is not None:
        lines = [f"formats, backward, cases and shapes are unknown, because {package} is not installed"]
    else:
        import_torch()
    rows = [_listed(name) for name in KERNELS]
    answer(listing("kernels.list", "kernels", LIST, rows, lines=lines), format, output)


def _listed(name: str) -> Listed:
    """Return the row of one kernel."""
    from llmbench.kernels.registry import load_kernel, read_summary

    if _missing() is not None:
        return Listed(name, read_summary(name))
    kernel = load_kernel(name)
    formats = [_short(dtype) for dtype in kernel.dtypes]
    return Listed(name, kernel.summary, formats, bool(kernel.differentiable), len(kernel.cases), len(kernel.shapes))


@command.command("check")
@prints_tables
def check_kernels(
    names: Names = None,
    device: Annotated[
        str, device_option("cuda, or cpu (Triton's interpreter)", names=("auto", "cuda", "cpu"))
    ] = "auto",
    dtype: DTypes = "bf16,fp16,fp32",
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", help="Number of random inputs per case.", parser=positive_integer)
    ] = 2,
    fuzz: Annotated[
        int | None,
        typer.Option(
            "--fuzz",
            metavar="SECONDS",
            help="Check random cases for this time, in place of the cases of each kernel.",
            parser=positive_integer,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the random cases of --fuzz.")] = 0,
    format: As = "table",
    output: Output = None,
) -> None:
    """Compare the results and gradients of each kernel with a reference in fp64.

    The error budget is twice the error of plain torch in the same number format, plus the error of one rounding. Output
    buffers are filled with NaN first, so that the check finds missing writes. Without a GPU, kernels run in Triton's
    interpreter. The exit code is 1 if a kernel exceeds its error budget.

    With --fuzz, shapes, strides, number formats, masks and options are random. The same --seed gives the same cases.
    For each failure, a line shows a Python expression that repeats the failure.

    Examples:

      llmbench kernels check glu

      llmbench kernels check glu --dtype bf16 --seeds 4

      llmbench kernels check attention moe --fuzz 3 --seed 7
    """
    need_triton()
    from llmbench.kernels.formats import gpu_name

    gpu = gpu_name()
    if device == "cuda" and gpu is None:
        raise CannotRunError(
            "--device cuda: this machine has no GPU", hint="--device cpu checks in Triton's interpreter"
        )
    place = "cpu" if device == "cpu" or gpu is None else "cuda"
    if place == "cpu":
        need_interpreter()
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this variable when the first kernel is imported
    if fuzz is not None:
        _fuzz(known_names(names), dtype, fuzz, seed, place, format, output)
        return
    from llmbench.kernels.proof.check import check_all

    rows = list(with_progress(check_all(known_names(names), named_formats(dtype), seeds, place), "checking"))
    wrong = [row for row in rows if not row.passed]
    machine = _machine(place)
    lines = [f"{len(rows) - len(wrong)} of {len(rows)} within budget, {machine}"]
    inputs = {"names": names or [], "device": place, "dtype": dtype, "seeds": seeds}
    answer(listing("kernels.check", "kernels", CHECK, rows, inputs=inputs, lines=lines), format, output)
    if wrong:
        raise typer.Exit(1)


def _machine(place: str) -> str | None:
    """Return the name of what runs the kernels, for a sentence."""
    from llmbench.kernels.formats import gpu_name

    return "in Triton's interpreter" if place == "cpu" else gpu_name()


def _fuzz(names: tuple[str, ...], dtype: str, seconds: int, seed: int, place: str, format: Any, output: Any) -> None:
    """Check random cases, and show one row per kernel and format, and the failures."""
    from llmbench.kernels.proof.fuzz import FuzzResult, fuzz

    results = with_progress(fuzz(names, named_formats(dtype), seconds, seed, place), "checking random cases")
    rows = [item for item in results if isinstance(item, FuzzResult)]
    failures = [failure for row in rows for failure in row.failures]
    ran = sum(row.trials for row in rows)
    lines = [f"{ran - len(failures)} of {ran} random cases within budget, seed {seed}, {_machine(place)}"]
    for failure in failures:
        lines += ["", f"WRONG {failure.trial.kernel}: {failure.reason}", f"  {failure.trial.expression}"]
        lines += [f"  smaller: {failure.smaller.expression}"] if failure.smaller else []
    if failures:
        interpreted = "TRITON_INTERPRET=1 " if place == "cpu" else ""
        call = "from llmbench.kernels.proof.fuzz import repeat; print(repeat(…))"
        lines += ["", f'To repeat one: {interpreted}python -c "{call}"']
    inputs = {"names": list(names), "device": place, "dtype": dtype, "fuzz_s": seconds, "seed": seed}
    answer(listing("kernels.check", "kernels", FUZZ, rows, inputs=inputs, lines=lines), format, output)
    if failures:
        raise typer.Exit(1)


@command.command("inspect")
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
    total = f"{sum(bool(row.config) for row in compiled)} configurations compiled, {faulty} with faults"
    arches = dict.fromkeys(row.arch for row in compiled)
    assemblers = ", ".join(f"ptxas {ptxas(number)} for sm_{number}" for number in arches)
    return [*blocks, Block(lines=[total, f"Triton {packages()['triton']}, {assemblers}"])]


def need_triton() -> None:
    """Raise CannotRunError unless torch and Triton are installed."""
    if (package := _missing()) is not None:
        raise CannotRunError(f"`llmbench kernels` needs {package}, which is not installed", hint=install_hint("gpu"))
    import_torch()


def _missing() -> str | None:
    """Return the name of a package that the kernels need and that is not installed, or None."""
    from importlib.util import find_spec

    return next((package for package in ("torch", "triton") if find_spec(package) is None), None)


def need_interpreter() -> None:
    """Raise CannotRunError if numpy is missing, or if Triton's interpreter cannot use the installed numpy."""
    from importlib import metadata
    from importlib.util import find_spec

    triton = metadata.version("triton")
    # The interpreter of Triton 3.6 uses arrays as loop bounds, which numpy 2.4 does not convert to integers.
    old = triton.startswith("3.6.")
    hint = "pip install 'numpy<2.4'" if old else "pip install numpy"
    if find_spec("numpy") is None:
        raise CannotRunError("Triton's interpreter needs numpy, which is not installed", hint=hint)
    numpy = metadata.version("numpy")
    if old and tuple(map(int, numpy.split(".")[:2])) >= (2, 4):
        raise CannotRunError(f"the interpreter of Triton {triton} cannot use numpy {numpy}", hint=hint)


def known_names(names: list[str] | None) -> tuple[str, ...]:
    """Return `names`, or the names of all kernels if `names` is empty. Raises UnknownNameError for an unknown name."""
    from llmbench.kernels.registry import KERNELS, load_kernel

    for name in names or ():
        load_kernel(name)
    return tuple(names or KERNELS)


def named_formats(text: str) -> list[Any]:
    """Return the torch dtypes of a comma-separated list. Raises SpecError for an unknown format or an empty list."""
    from llmbench.kernels.formats import FORMATS

    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in FORMATS:
            raise SpecError(f"--dtype {part}: unknown format", hint=f"choose from {', '.join(FORMATS)}")
    if not parts:
        raise SpecError("--dtype names no format", hint=f"choose from {', '.join(FORMATS)}")
    return [FORMATS[part] for part in parts]


def _arches(text: str) -> list[int]:
    from llmbench.kernels.proof.inspect import ARCHITECTURES

    names = {f"sm_{number}": number for number in ARCHITECTURES}
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if part not in names:
            raise SpecError(f"--arch {part}: unknown architecture", hint=f"choose from {', '.join(names)}")
    if not parts:
        raise SpecError("--arch names no architecture", hint=f"choose from {', '.join(names)}")
    return [names[part] for part in parts]


def with_progress(
    work: Iterable[T], activity: str, part_of: Callable[[T], Any] | None = None, total: int | None = None
) -> Iterator[T]:
    """Yield the items of `work`. If stderr is a terminal, show the number of finished parts and the time there.

    part_of: the part of the work to which an item belongs. None: each item is a part. total: number of parts, from
        which the remaining time is estimated.
    """
    import sys
    from time import monotonic

    if not sys.stderr.isatty():
        yield from work
        return
    from rich.console import Console

    start, parts = monotonic(), set()
    of_all = f" of {total} shapes" if total else ""
    with Console(stderr=True).status(f"{activity}: 0{of_all or ' done'}") as status:
        for number, item in enumerate(work):
            parts.add(number if part_of is None else part_of(item))
            elapsed = monotonic() - start
            left = f", about {elapsed / len(parts) * (total - len(parts)):.0f} s left" if total else ""
            status.update(f"{activity}: {len(parts)}{of_all or ' done'} in {elapsed:.0f} s{left}")
            yield item
