"""Number formats of tensors and their widths."""

from __future__ import annotations

from typing import Literal, assert_never, get_args

DType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "fp4"]
"""The number formats of weights, activations and caches."""

STATE_BYTES = 4
"""Bytes per element of a recurrent state, which is always fp32. A convolution state has the format of the cache."""

DTYPES: tuple[DType, ...] = get_args(DType)


def bits_of(dtype: DType) -> int:
    """Return the bits per element. The scales and zero points of quantised formats are not included."""
    match dtype:
        case "fp32":
            return 32
        case "bf16" | "fp16":
            return 16
        case "fp8" | "int8":
            return 8
        case "int4" | "fp4":
            return 4
        case _:
            assert_never(dtype)


_BITS: dict[DType, int] = {dtype: bits_of(dtype) for dtype in DTYPES}


def bytes_of(elements: int, dtype: DType) -> int:
    """Return the bytes of `elements` elements, rounded up to whole bytes."""
    return (elements * _BITS[dtype] + 7) // 8
