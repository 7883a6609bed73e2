"""Where a model can live: devices by name, and the memory there."""

from __future__ import annotations

from pathlib import Path

import torch

from llmbench.errors import CannotRunError, LLMBenchError

__all__ = ["device_of", "free_bytes", "taken_bytes"]


def device_of(name: torch.device | str) -> torch.device:
    """The device of that name, once it is sure that it is there; "auto" is a GPU where there is one.

    Raises LLMBenchError for what names none, CannotRunError for one that is not here or not supported.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise LLMBenchError(f"no device `{name}`", hint="auto, cpu, cuda, cuda:1 or meta") from None
    if device.type not in ("cpu", "cuda", "meta"):
        raise CannotRunError(f"device `{name}`: only cpu, cuda and meta are supported")
    if device.type != "cuda" and device.index is not None:
        raise LLMBenchError(f"no device `{name}`", hint=f"there is one `{device.type}`, without a number")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotRunError("there is no CUDA GPU here, or this PyTorch cannot use it", hint="use the device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CannotRunError(f"device `{name}`: GPUs here are cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def free_bytes(device: torch.device) -> int | None:
    """Bytes free on a device, where that can be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kibibytes(Path("/proc/meminfo"), "MemAvailable") if device.type == "cpu" else None


def taken_bytes(device: torch.device) -> int | None:
    """Bytes in use by this process: on a GPU what torch has allocated, on a CPU what is resident."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _kibibytes(Path("/proc/self/status"), "VmRSS") if device.type == "cpu" else None


def _kibibytes(file: Path, key: str) -> int | None:
    """A figure of one of Linux's tables, in bytes; None on other systems."""
    if not file.exists():
        return None
    found = [line.split()[1] for line in file.read_text().splitlines() if line.startswith(key)]
    return int(found[0]) * 1024 if found else None
