"""`llmbench kernels list`: the Triton kernels, and the function that each kernel computes."""

from __future__ import annotations

from typing import NamedTuple

from llmbench.cli.kernels.requirements import missing_package
from llmbench.cli.measured import import_torch
from llmbench.cli.options import As, Output, answer, prints_tables
from llmbench.report.document import listing
from llmbench.report.fields import Field


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
    if (package := missing_package()) is not None:
        lines = [f"formats, backward, cases and shapes are unknown, because {package} is not installed"]
    else:
        import_torch()
    rows = [_listed(name) for name in KERNELS]
    answer(listing("kernels.list", "kernels", LIST, rows, lines=lines), format, output)


def _listed(name: str) -> Listed:
    """Return the row of one kernel."""
    from llmbench.kernels.registry import load_kernel, read_summary

    if missing_package() is not None:
        return Listed(name, read_summary(name))
    from llmbench.kernels.formats import short

    kernel = load_kernel(name)
    formats = [short(dtype) for dtype in kernel.dtypes]
    return Listed(name, kernel.summary, formats, bool(kernel.differentiable), len(kernel.cases), len(kernel.shapes))
