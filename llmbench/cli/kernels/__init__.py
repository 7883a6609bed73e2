"""`llmbench kernels`: list, check, compile and time the Triton kernels."""

from __future__ import annotations

import typer

from llmbench.cli.kernels.bench import bench_kernels
from llmbench.cli.kernels.check import check_kernels
from llmbench.cli.kernels.inspect import inspect_kernels
from llmbench.cli.kernels.listing import list_kernels

command = typer.Typer(
    no_args_is_help=True,
    help="List, check, compile and time the Triton kernels.",
    rich_markup_mode=None,
)
command.command("list")(list_kernels)
command.command("check")(check_kernels)
command.command("inspect")(inspect_kernels)
command.command("bench")(bench_kernels)
