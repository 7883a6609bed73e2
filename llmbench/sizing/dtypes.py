"""Number formats and their widths."""

from __future__ import annotations

from typing import Literal, get_args

DType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "fp4"]
"""The formats of weights, activations and caches."""

STATE_BYTES = 4
"""Bytes of one element of a recurrent state: always fp32. A convolution state has the format of the cache instead."""

DTYPES: tuple[DType, ...] = get_args(DType)

_BITS: dict[DType, int] = {"fp32": 32, "bf16": 16, "fp16": 16, "fp8": 8, "int8": 8, "int4": 4, "fp4": 4}


def bits_of(dtype: DType) -> int:
    """Bits of one element. Scales and zero points of quantised formats are not counted."""
    return _BITS[dtype]


def bytes_of(elements: int, dtype: DType) -> int:
    """Bytes of `elements` elements, rounded up to whole bytes."""
    return (elements * _BITS[dtype] + 7) // 8
