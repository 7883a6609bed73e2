"""Number formats of tensors and their widths."""

from __future__ import annotations

from typing import Literal, get_args

DType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "fp4"]
"""The number formats of weights, activations and caches."""

STATE_BYTES = 4
"""Bytes per element of a recurrent state, which is always fp32. A convolution state has the format of the cache."""

DTYPES: tuple[DType, ...] = get_args(DType)

_BITS: dict[DType, int] = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4, "fp4": 4}


def bits_of(dtype: DType) -> int:
    """Return the bits per element. The scales and zero points of quantised formats are not included."""
    return _BITS[dtype]


def bytes_of(elements: int, dtype: DType) -> int:
    """Return the bytes of `elements` elements, rounded up to whole bytes."""
    return (elements * _BITS[dtype] + 7) // 8
