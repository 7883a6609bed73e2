"""The number formats of a model's weights and activations."""

from __future__ import annotations

from typing import Any, Literal

import torch

from llmbench.errors import SpecError

Format = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Format, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The torch dtype of each format that commands accept."""


def holds_weights(dtype: torch.dtype) -> bool:
    """Return whether a model can have weights of this dtype.

    The dtype must be floating-point and wider than 8 bits. Formats with 8 bits would need scales.
    """
    return dtype.is_floating_point and dtype.itemsize > 1


def weight_format(dtype: Any) -> torch.dtype:
    """Return `dtype` if a model can be computed in this format. Raises SpecError for other formats."""
    if isinstance(dtype, torch.dtype) and holds_weights(dtype):
        return dtype
    raise SpecError(
        f"dtype: a model cannot be computed in the format `{dtype}`",
        hint="use torch.float32, torch.bfloat16, torch.float16 or torch.float64",
    )
