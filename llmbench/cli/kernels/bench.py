"""`llmbench kernels bench`: time the Triton kernels, and compare each with its reference in plain torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from llmbench.bench.results.metrics import Line, MachineLimits, as_json, compared_with
from llmbench.cli.kernels.arguments import Names, known_names, named_formats
from llmbench.cli.kernels.requirements import need_interpreter, need_triton
from llmbench.cli.measured import device_option, machine, machine_notes, one_table, speedup_note
from llmbench.cli.options import As, Output, answer, prints_tables, working
from llmbench.errors import CannotRunError
from llmbench.report.document import Block, Document, table
from llmbench.report.fields import Field, fitted

if TYPE_CHECKING:
    from llmbench.kernels.kernel import Kernel
    from llmbench.spec.device import DType

DTypes = Annotated[
    str, typer.Option("--dtype", metavar="LIST", help="Number formats, separated by commas: bf16, fp16, fp32.")
]
Direction = Annotated[Literal["forward", "backward", "both"], typer.Option("--pass", help="Pass to time.")]
Device = Annotated[
    str,
    device_option(
        "cuda, cuda:1, or cpu (a test run in Triton's interpreter; the times have no meaning)", auto="the GPU"
    ),
]

REHEARSAL = "This is a test run in Triton's interpreter, with one small case per kernel. The times have no meaning."


def _case_field(name: str, heading: str, **options: Any) -> Field[Line]:
    return Field(name, heading, value=lambda line: line.row.case[name], **options)


FIELDS: tuple[Field[Line], ...] = (
    _case_field("kernel", "kernel"),
    _case_field("shape", "shape", wraps=True),
    _case_field("dtype", "format", spare=5),
    Field("implementation", "computed by", value=lambda line: line.row.implementation),
    *compared_with("reference"),
)


@prints_tables
def bench_kernels(
    names: Names = None,
    dtype: DTypes = "bf16",
    direction: Direction = "forward",
    device: Device = "auto",
    format: As = "table",
    output: Output = None,
) -> None:
    """Time each kernel with shapes of real models, and compare the time with that of a reference in plain torch.

    Every kernel is first checked against a reference in fp64. The prediction is the least time that the reference
    measurements of this run allow for the kernel's FLOPs and bytes. The command needs a GPU. With --device cpu or
    TRITON_INTERPRET=1, it only makes a test run: one small case per kernel in Triton's interpreter. The exit code is 1
    if a row is INCORRECT or FAILED.

    `llmbench profile norm --model MODEL --seq TOKENS --impl fused` times a kernel with the shapes of your own model.

    Examples:

      llmbench kernels bench glu

      llmbench kernels bench rms_norm layer_norm --pass both --dtype bf16,fp32
    """
    need_triton()
    from llmbench.kernels.formats import gpu_name

    rehearsal = device == "cpu" or (device == "auto" and gpu_name() is None)
    if rehearsal and device == "auto" and os.environ.get("TRITON_INTERPRET") != "1":
        raise CannotRunError(
            "`llmbench kernels bench` needs a GPU", hint="--device cpu makes a test run in Triton's interpreter"
        )
    if rehearsal:
        need_interpreter()
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads this variable when the first kernel is imported
    elif os.environ.get("TRITON_INTERPRET") == "1":
        raise CannotRunError(
            "TRITON_INTERPRET=1 is set: kernels would not run on the GPU", hint="unset TRITON_INTERPRET"
        )
    from llmbench.kernels.registry import load_kernel
    from llmbench.model.devices import device_of

    where = device_of("cpu" if rehearsal else device)
    kernels = [load_kernel(name) for name in known_names(names)]
    inputs = {"names": names or [], "dtype": dtype, "pass": direction, "device": str(where)}
    with working("measuring kernels"):
        document = _measured(kernels, named_formats(dtype), direction, where, inputs, rehearsal=rehearsal)
    answer(document, format, output)
    if any(row["status"] in ("INCORRECT", "FAILED") for row in document.rows):
        raise typer.Exit(1)


def _measured(
    kernels: list[Kernel],
    formats: list[Any],
    direction: Literal["forward", "backward", "both"],
    device: Any,
    inputs: dict[str, Any],
    *,
    rehearsal: bool,
) -> Document:
    """Time the kernels in each number format. The reference measurements are repeated for each format."""
    import msgspec

    from llmbench.bench.experiments.experiment import FULL, run
    from llmbench.bench.kernels import REFERENCE, kernel_groups
    from llmbench.bench.results.sentences import about_kernels
    from llmbench.bench.results.sheets import remarks
    from llmbench.kernels.formats import short
    from llmbench.measure.clock import clock_for
    from llmbench.measure.environment import environment
    from llmbench.measure.reference import Sizes, measure_references

    clock, this_machine = clock_for(device), environment(device)
    lines: list[Line] = []
    below: list[str] = []
    notes: list[str] = []
    by_format: dict[str, Any] = {}
    for dtype in dict.fromkeys(dtype for kernel in kernels for dtype in kernel.formats(formats)):
        supporting = [kernel for kernel in kernels if dtype in kernel.formats(formats)]
        references = measure_references(clock, dtype, sizes=Sizes(64, 2**16, 10) if rehearsal else None)
        limits = MachineLimits.on(references, this_machine, cast("DType", short(dtype)))
        by_format[short(dtype)] = msgspec.to_builtins(references)
        pace = FULL.fixed(samples=2) if rehearsal else FULL
        groups = kernel_groups(supporting, dtype, direction, device, pace=pace, rehearsal=rehearsal)
        measured = list(run(groups, clock=clock, references=references))
        order = {key: index for index, key in enumerate(key for group in groups for key in group.row_keys())}
        measured.sort(key=lambda row: order[row.key])
        by_case = {str(row.case): row for row in measured if row.implementation == REFERENCE}
        lines += [Line(row, limits, by_case[str(row.case)], row.extra) for row in measured]
        below += machine(this_machine, limits)
        notes += [*remarks(measured), *machine_notes(limits, measured)]
    notes.append("predicted time: least time that the reference measurements allow for the kernel's FLOPs and bytes")
    notes.append(speedup_note("the reference", "the kernel"))
    rows = [line.row for line in lines]
    finding = about_kernels(rows, REFERENCE, timed=not rehearsal)
    return Document(
        command="kernels.bench",
        inputs=inputs,
        rows_key="rows",
        rows=as_json(lines),
        blocks=[
            Block(
                answer=" ".join(filter(None, (REHEARSAL if rehearsal else "", finding))),
                table=table(fitted(FIELDS, lines), lines),
                lines=list(dict.fromkeys(below)),
                notes=notes,
            )
        ],
        environment=msgspec.to_builtins(this_machine),
        also={"reference_measurements": by_format},
        tables=[one_table(lines)],
    )
