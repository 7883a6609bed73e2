"""Number formats by their short names, and the GPU, for callers that must not load a kernel yet."""

from __future__ import annotations

import torch

__all__ = ["FORMATS", "gpu_name", "short"]

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""The formats that kernels compute in."""


def short(dtype: torch.dtype) -> str:
    """bf16 for torch.bfloat16."""
    return next(name for name, known in FORMATS.items() if known == dtype)


def gpu_name() -> str | None:
    """The current GPU, None where there is none."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None
