"""`llmbench env`: the software and hardware of this machine."""

from __future__ import annotations

import os
import platform
from typing import NamedTuple

from llmbench._version import __version__
from llmbench.cli.options import As, Output, answer, prints_tables
from llmbench.measure.environment import PACKAGES, Gpus, InstalledGpu, gpus, packages
from llmbench.report.document import Block, Document, table, transposed
from llmbench.report.fields import Field, record, records

GPU_FIELDS: tuple[Field[InstalledGpu], ...] = (
    Field("index", "GPU", "number", value=lambda gpu: gpu.number, description="number of the GPU"),
    Field("name", "name", description="name that the driver reports"),
    Field("memory_bytes", "memory", "gib", description="memory that the driver reports"),
    Field(
        "device",
        "datasheet",
        text=lambda gpu: gpu.device or "unknown GPU",
        description="name of the datasheet in `llmbench specs list --devices` with this GPU name and memory, or null",
    ),
)


class Machine(NamedTuple):
    """The packages and GPUs of this machine."""

    packages: dict[str, str | None]
    gpus: Gpus


def _package(name: str) -> Field[Machine]:
    return Field(f"packages.{name}", name, value=lambda machine: machine.packages[name], in_json=False)


FIELDS: tuple[Field[Machine], ...] = (
    Field("llmbench", "llmbench", value=lambda machine: __version__, description="version of llmbench"),
    Field("python", "Python", value=lambda machine: platform.python_version(), description="version of Python"),
    Field("os", "OS", value=lambda machine: platform.platform(), description="operating system"),
    Field("cpu_count", "CPUs", "count", value=lambda machine: os.cpu_count(), description="number of logical CPUs"),
    Field(
        "driver",
        "GPU driver",
        value=lambda machine: machine.gpus.driver,
        description="version of the GPU driver, or null",
    ),
    Field("packages", description="version of each package; null if it is not installed"),
    *map(_package, PACKAGES),
    Field(
        "gpus",
        value=lambda machine: records(GPU_FIELDS, machine.gpus.gpus),
        description="list of GPUs, each with `index`, `name`, `memory_bytes` and `device` (name of the datasheet, or "
        "null)",
    ),
    Field(
        "gpu_problem", value=lambda machine: machine.gpus.problem, description="reason why no GPU is listed, or null"
    ),
)


@prints_tables
def command(format: As = "table", output: Output = None) -> None:
    """Show the software and the GPUs of this machine.

    For each GPU, the table names the datasheet of `llmbench specs list --devices` that has the same GPU name and
    memory. If there is no such datasheet, the table shows "unknown GPU".

    Examples:

      llmbench env

      llmbench env --format json
    """
    machine = Machine(packages(), gpus())
    blocks = [Block(table=transposed(FIELDS, [("version", machine)]))]
    tables = [table(FIELDS, [machine])]
    if machine.gpus.gpus:
        tables.append(table(GPU_FIELDS, machine.gpus.gpus))
        blocks.append(Block(table=tables[-1]))
    else:
        blocks[0].lines.append(f"no GPU: {machine.gpus.problem}")
    document = Document(
        command="env",
        inputs={},
        rows_key="machines",
        rows=[record(FIELDS, machine)],
        blocks=blocks,
        tables=tables,
    )
    answer(document, format, output)
