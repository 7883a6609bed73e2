"""Short names of number formats, and the name of the GPU. Importing this file loads no kernel."""

from __future__ import annotations

import torch

__all__ = ["FORMATS", "gpu_name", "short"]

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""The formats that kernels compute in."""


def short(dtype: torch.dtype) -> str:
    """Return the short name of a dtype: bf16 for torch.bfloat16."""
    return next(name for name, known in FORMATS.items() if known == dtype)


def gpu_name() -> str | None:
    """Return the name of the current GPU, or None without a GPU."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
