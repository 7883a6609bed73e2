"""`llmbench env`: the machine as llmbench sees it."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from llmbench._version import __version__
from llmbench.cli.options import As, Output, answer
from llmbench.report.document import Block, Column, Document, Table
from llmbench.spec.catalog import bundled_devices, load_device
from llmbench.spec.device import device_matching

PACKAGES = (
    "typer",
    "rich",
    "msgspec",
    "nvidia-ml-py",
    "torch",
    "triton",
    "transformers",
    "huggingface_hub",
    "matplotlib",
)


def command(format: As = "table", output: Output = None) -> None:
    """This machine: Python, packages, GPUs.

    Each GPU with the datasheet that matches its exact name and memory, or "unknown GPU".

    Examples:

      llmbench env

      llmbench env --format json
    """
    packages = {name: _version(name) for name in PACKAGES}
    driver, gpus, problem = _gpus()
    row: dict[str, Any] = {
        "llmbench": __version__,
        "python": platform.python_version(),
        "os": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": packages,
        "driver": driver,
        "gpus": gpus,
        "gpu_problem": problem,
    }
    about: list[list[Any]] = [
        ["llmbench", __version__],
        ["Python", row["python"]],
        ["OS", row["os"]],
        ["CPUs", str(row["cpu_count"])],
        ["GPU driver", driver],
    ]
    about += [[name, found] for name, found in packages.items()]
    blocks = [Block(table=Table(columns=[Column(""), Column("version")], rows=about))]
    if gpus:
        rows = [[gpu["index"], gpu["name"], gpu["memory_bytes"], gpu["device"] or "unknown GPU"] for gpu in gpus]
        columns = [
            Column("GPU", "number"),
            Column("name"),
            Column("memory", "gib"),
            Column("datasheet"),
        ]
        blocks.append(Block(table=Table(columns=columns, rows=rows)))
    else:
        blocks[0].lines.append(f"no GPU: {problem}")
    answer(Document(command="env", inputs={}, rows_key="machines", rows=[row], blocks=blocks), format, output)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _gpus() -> tuple[str | None, list[dict[str, Any]], str | None]:
    """Driver, GPUs, and why there are none."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as problem:  # NVML raises its own classes, and OSError where the library is broken
        return None, [], str(problem) or type(problem).__name__
    try:
        devices = [load_device(name) for name in bundled_devices()]
        gpus = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = _text(pynvml.nvmlDeviceGetName(handle))
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            match = device_matching(name, memory, devices)
            gpus.append(
                {
                    "index": index,
                    "name": name,
                    "memory_bytes": memory,
                    "device": match.name if match else None,
                }
            )
        return _text(pynvml.nvmlSystemGetDriverVersion()), gpus, None if gpus else "the driver reports none"
    except pynvml.NVMLError as problem:
        return None, [], str(problem)
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
