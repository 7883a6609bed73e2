"""The environment of a measurement: machine, driver, libraries, compilers and commit, but no host name and no path.

Importing this module does not import torch. `packages` and `gpus` work without torch.
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
    """A GPU as NVML reports it.

    `number`: NVML's index of the GPU. `device`: the name of the device file in `specs/devices` that has the same GPU
    name and memory, or None.
    """

    number: int
    name: str
    memory_bytes: int
    device: str | None


class Gpus(NamedTuple):
    """The version of the GPU driver, and the GPUs that the driver reports.

    `problem`: the reason why `gpus` is empty, or None.
    """

    driver: str | None
    gpus: list[InstalledGpu]
    problem: str | None


def packages() -> dict[str, str | None]:
    """Return the version of each package that llmbench uses. The version of a missing package is None."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def gpus() -> Gpus:
    """Return the driver version and the GPUs of this machine, as NVML reports them."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception as problem:  # NVML raises errors of its own classes, and OSError if the library is broken
        return Gpus(None, [], str(problem) or type(problem).__name__)
    try:
        devices = [load_device(name) for name in bundled_devices()]
        installed = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name = _text(pynvml.nvmlDeviceGetName(handle))
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            match = device_matching(name, memory, devices)
            installed.append(InstalledGpu(index, name, memory, match.name if match else None))
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return Gpus(driver, installed, None if installed else "the driver reports none")
    except pynvml.NVMLError as problem:
        return Gpus(None, [], str(problem))
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class Environment(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The machine and the software that a measurement depends on. None means unknown or absent.

    `device`: "cpu" or the name of the GPU.
    `datasheet`: the name of the device file in `specs/devices` that matches the GPU.
    `memory_bytes`: the memory of the GPU in bytes.
    `ptxas`: the version of the assembler that Triton uses for the GPU.
    `commit`: the commit of llmbench's git checkout. A "+" at the end means that files differ from the commit. Without a
        checkout: the value of the environment variable LLMBENCH_COMMIT.
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
    """Return the environment of measurements on `device`."""
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
    """Return the commit of the git checkout in the folder `root`, or None if `root` is no checkout.

    A "+" is appended if tracked files differ from the commit.
    """
    if not (root / ".git").exists():
        return None
    head = _printed("git", "-C", str(root), "rev-parse", "HEAD")
    if head is None:
        return None
    changed = _printed("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return head.strip() + ("+" if changed and changed.strip() else "")


def cpu_model() -> str | None:
    """Return the name of the processor, or None if the system does not report the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


@cache
def ptxas(arch: int) -> str | None:
    """Return the version of the assembler `ptxas` that Triton uses for compute capability `arch` (90 means 9.0).

    Triton contains two versions of ptxas. Triton 3.6 uses the newer version from compute capability 10.0 on, and Triton
    3.9 from 9.0 on. The environment variable TRITON_PTXAS_PATH can name another assembler.
    """
    try:
        from triton.backends.nvidia.compiler import get_ptxas

        path = get_ptxas(arch).path
    except (ImportError, RuntimeError, AttributeError):
        return None
    version_text = re.search(r"V(\d+\.\d+\.\d+)", _printed(str(path), "--version") or "")
    return version_text[1] if version_text else None


def _printed(*command: str) -> str | None:
    """Run a program and return its output. Return None if the program is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
