"""`llmbench kernels check`: compare the Triton kernels with references in fp64."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llmbench.cli.kernels.arguments import DTypes, Names, known_names, named_formats
from llmbench.cli.kernels.progress import with_progress
from llmbench.cli.kernels.requirements import need_interpreter, need_triton
from llmbench.cli.measured import device_option
from llmbench.cli.options import As, Output, answer, positive_integer, prints_tables
from llmbench.errors import CannotRunError
from llmbench.report.document import listing
from llmbench.report.fields import Field, records
from llmbench.report.units import plural

if TYPE_CHECKING:
    from llmbench.kernels.proof.check import CheckResult
    from llmbench.kernels.proof.fuzz import Failure, FuzzResult

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
        text=lambda row: "ok" if row.passed else "WRONG",
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


def _short(dtype: Any) -> str:
    """Return the short name of a torch dtype, for example bf16."""
    from llmbench.kernels.formats import short

    return short(dtype)


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

    The error budget is twice the error of plain torch in the same number format, plus one unit in the last place.
    Output buffers are filled with NaN first, so that the check finds missing writes. Without a GPU, kernels run in
    Triton's interpreter. The exit code is 1 if a kernel exceeds its error budget.

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
    found = (
        f"The errors of {len(rows) - len(wrong)} of {plural(len(rows), 'row')} are within budget, {_machine(place)}."
    )
    inputs = {"names": names or [], "device": place, "dtype": dtype, "seeds": seeds}
    answer(listing("kernels.check", "kernels", CHECK, rows, inputs=inputs, answer=found), format, output)
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
    found = (
        f"{ran - len(failures)} of {plural(ran, 'random case')} are within budget, with seed {seed}, {_machine(place)}."
    )
    lines: list[str] = []
    for failure in failures:
        lines += [f"WRONG {failure.trial.kernel}: {failure.reason}", f"  {failure.trial.expression}"]
        lines += [f"  smaller: {failure.smaller.expression}"] if failure.smaller else []
    if failures:
        interpreted = "TRITON_INTERPRET=1 " if place == "cpu" else ""
        call = "from llmbench.kernels.proof.fuzz import repeat; print(repeat(…))"
        lines += [f'To repeat one: {interpreted}python -c "{call}"']
    inputs = {"names": list(names), "device": place, "dtype": dtype, "fuzz_s": seconds, "seed": seed}
    answer(listing("kernels.check", "kernels", FUZZ, rows, inputs=inputs, answer=found, lines=lines), format, output)
    if failures:
        raise typer.Exit(1)
