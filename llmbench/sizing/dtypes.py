"""Number formats of tensors and their widths."""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeGuard, assert_never, get_args

DType = Literal["fp32", "bf16", "fp16", "fp8", "int8", "int4", "fp4"]
"""The number formats of weights, activations and caches."""

KVFormatName = Literal[
    "fp8_e4m3",
    "fp8_e5m2",
    "fp8_per_token_head",
    "int8_per_token_head",
    "nvfp4",
    "fp8_ds_mla",
    "q8_0",
    "q5_1",
    "q5_0",
    "q4_1",
    "q4_0",
    "iq4_nl",
    "turbomind_int8",
    "turbomind_int4",
]
"""The formats of engines for their caches, scales included (see kv_formats.py)."""

KVDType = Literal[DType, KVFormatName]
"""The format of a cache: a number format, without scales, or a format of an engine, with its scales."""

STATE_DTYPE: DType = "fp32"
"""The number format of a recurrent state, if the config of the model states none. A convolution state has the number
format of the cache. If the cache has the format of an engine, a convolution state is bf16."""

DTYPES: tuple[DType, ...] = get_args(DType)

COLDEST = 2.0**-126
"""The lowest temperature above 0 of a generation. It is the smallest normal number of fp32, because the division of
logits by the temperature runs in fp32."""


def is_plain(kv_dtype: KVDType) -> TypeGuard[DType]:
    """Return whether the format of a cache is a number format without scales."""
    return kv_dtype in DTYPES


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


class Tensors(NamedTuple):
    """Tensors of one kind that an op stores, such as its weights or the moments of an optimizer.

    kind: what the tensors are. elements: number of their elements. bits: bits per element.
    """

    kind: str
    elements: int
    bits: int

    @property
    def bytes(self) -> int:
        """The bytes of the tensors, rounded up."""
        return (self.elements * self.bits + 7) // 8
