"""Where a figure was measured: machine, driver, libraries, compilers, commit. No host name and no path.

Importing this loads no torch, and `packages` and `gpus` need none.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from llmbench._version import __version__
from llmbench.spec.catalog import bundled_devices, load_device
from llmbench.spec.device import device_matching

if TYPE_CHECKING:
    import torch

__all__ = ["PACKAGES", "Environment", "Gpus", "InstalledGpu", "environment", "gpus", "packages"]

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


class InstalledGpu(NamedTuple):
    """A GPU as NVML numbers and reports it, and the datasheet that it matches."""

    number: int
    name: str
    memory_bytes: int
    device: str | None


class Gpus(NamedTuple):
    """The driver's version and its GPUs, or why there are none."""

    driver: str | None
    gpus: list[InstalledGpu]
    problem: str | None


def packages() -> dict[str, str | None]:
    """Versions of what llmbench works with, None where it is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def gpus() -> Gpus:
    """What NVML knows."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as problem:  # NVML raises its own classes, and OSError where the library is broken
        return Gpus(None, [], str(problem) or type(problem).__name__)
    try:
        devices = [load_device(name) for name in bundled_devices()]
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = _text(pynvml.nvmlDeviceGetName(handle))
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            match = device_matching(name, memory, devices)
            found.append(InstalledGpu(index, name, memory, match.name if match else None))
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return Gpus(driver, found, None if found else "the driver reports none")
    except pynvml.NVMLError as problem:
        return Gpus(None, [], str(problem))
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a figure depends on beside its own inputs; None is unknown or absent.

    `device` is "cpu" or the GPU's name, `datasheet` the bundled device that it matches. `ptxas` is the one that Triton
    assembles with for this GPU. `commit` of the installed tree where that is a git checkout, with "+" behind it where
    files differ from it; of a copy without its history what LLMBENCH_COMMIT says.
    """

    llmbench: str
    commit: str | None
    python: str
    os: str
    cpu: str | None
    cpu_count: int | None
    threads: int
    device: str
    datasheet: str | None
    memory_bytes: int | None
    compute_capability: str | None
    driver: str | None
    torch: str
    cuda: str | None
    cudnn: str | None
    triton: str | None
    ptxas: str | None


def environment(device: torch.device) -> Environment:
    """The environment of what is measured on `device`."""
    import torch

    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    cudnn = torch.backends.cudnn.version() if gpu else None
    match = None
    if gpu:
        devices = [load_device(name) for name in bundled_devices()]
        match = device_matching(gpu.name, gpu.total_memory, devices, num_sms=gpu.multi_processor_count)
    return Environment(
        llmbench=__version__,
        commit=commit(Path(__file__).parents[2]) or os.environ.get("LLMBENCH_COMMIT"),
        python=platform.python_version(),
        os=f"{platform.system()} {platform.machine()}",
        cpu=cpu_model(),
        cpu_count=os.cpu_count(),
        threads=torch.get_num_threads(),
        device=gpu.name if gpu else "cpu",
        datasheet=match.name if match else None,
        memory_bytes=gpu.total_memory if gpu else None,
        compute_capability=f"{gpu.major}.{gpu.minor}" if gpu else None,
        driver=gpus().driver if gpu else None,
        torch=str(torch.__version__),
        cuda=torch.version.cuda,
        cudnn=str(cudnn) if cudnn is not None else None,
        triton=_version("triton"),
        ptxas=ptxas(10 * gpu.major + gpu.minor) if gpu else None,
    )


def commit(root: Path) -> str | None:
    """The commit of a checkout at `root` itself: a folder inside another repository has none."""
    if not (root / ".git").exists():
        return None
    found = _printed("git", "-C", str(root), "rev-parse", "HEAD")
    if found is None:
        return None
    changed = _printed("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return found.strip() + ("+" if changed and changed.strip() else "")


def cpu_model() -> str | None:
    """The processor's name, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


@cache
def ptxas(arch: int) -> str | None:
    """Version of the assembler that Triton uses for compute capability `arch` (90), TRITON_PTXAS_PATH minded.

    Releases of Triton carry two and choose differently: 3.6 takes the newer one from 10.0 on, 3.9 from 9.0 on.
    """
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        path = get_ptxas(arch).path
    except (ImportError, RuntimeError, AttributeError):
        return None
    found = re.search(r"V(\d+\.\d+\.\d+)", _printed(str(path), "--version") or "")
    return found[1] if found else None


def _printed(*command: str) -> str | None:
    """What a program prints, None where it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
