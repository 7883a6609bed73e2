"""Find a device by name, and read its free and used memory."""

from __future__ import annotations

from pathlib import Path

import torch

from llmbench.errors import CannotRunError, LLMBenchError

__all__ = ["device_of", "free_bytes", "used_bytes"]


def device_of(name: torch.device | str) -> torch.device:
    """Return the device with this name. "auto" is the GPU if there is one, else the CPU.

    Raises LLMBenchError for an unknown name, CannotRunError for a device that is missing or not supported.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise LLMBenchError(f"unknown device `{name}`", hint="choose auto, cpu, cuda, cuda:1 or meta") from None
    if device.type not in ("cpu", "cuda", "meta"):
        raise CannotRunError(f"device `{name}`: only cpu, cuda and meta are supported")
    if device.type != "cuda" and device.index is not None:
        raise LLMBenchError(f"unknown device `{name}`", hint=f"write `{device.type}` without a number")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise CannotRunError("no CUDA GPU was found, or this PyTorch cannot use it", hint="use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise CannotRunError(f"device `{name}`: this machine has cuda:0 to cuda:{torch.cuda.device_count() - 1}")
    return device


def free_bytes(device: torch.device) -> int | None:
    """Return the free bytes of a device. None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _kibibytes(Path("/proc/meminfo"), "MemAvailable") if device.type == "cpu" else None


def used_bytes(device: torch.device) -> int | None:
    """Return the bytes that this process uses on a device.

    On a GPU, these are the bytes that torch allocated. On a CPU, the result is the resident set of the process. None on
    other devices.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _kibibytes(Path("/proc/self/status"), "VmRSS") if device.type == "cpu" else None


def _kibibytes(file: Path, key: str) -> int | None:
    """Return the value of `key` in a file of /proc, converted from KiB to bytes. None on systems without /proc."""
    if not file.exists():
        return None
    values = [line.split()[1] for line in file.read_text().splitlines() if line.startswith(key)]
    return int(values[0]) * 1024 if values else None
