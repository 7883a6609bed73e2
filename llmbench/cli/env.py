"""`llmbench env`: the machine as llmbench sees it."""

from __future__ import annotations

import os
import platform
from typing import Any

from llmbench._version import __version__
from llmbench.cli.options import As, Output, answer
from llmbench.measure.environment import gpus, packages
from llmbench.report.document import Block, Column, Document, Table


def command(format: As = "table", output: Output = None) -> None:
    """This machine: Python, packages, GPUs.

    Each GPU with the datasheet that matches its exact name and memory, or "unknown GPU".

    Examples:

      llmbench env

      llmbench env --format json
    """
    versions, found = packages(), gpus()
    row: dict[str, Any] = {
        "llmbench": __version__,
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": versions,
        "driver": found.driver,
        "gpus": [
            {"index": gpu.number, "name": gpu.name, "memory_bytes": gpu.memory_bytes, "device": gpu.device}
            for gpu in found.gpus
        ],
        "gpu_problem": found.problem,
    }
    about: list[list[Any]] = [
        ["llmbench", __version__],
        ["Python", row["python"]],
        ["OS", row["os"]],
        ["CPUs", str(row["cpu_count"])],
        ["GPU driver", found.driver],
    ]
    about += [[name, version] for name, version in versions.items()]
    blocks = [Block(table=Table(columns=[Column(""), Column("version")], rows=about))]
    if found.gpus:
        rows = [[*gpu[:3], gpu.device or "unknown GPU"] for gpu in found.gpus]
        columns = [
            Column("GPU", "number"),
            Column("name"),
            Column("memory", "gib"),
            Column("datasheet"),
        ]
        blocks.append(Block(table=Table(columns=columns, rows=rows)))
    else:
        blocks[0].lines.append(f"no GPU: {found.problem}")
    answer(Document(command="env", inputs={}, rows_key="machines", rows=[row], blocks=blocks), format, output)
