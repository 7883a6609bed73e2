"""The matrix product of all kernels: 16-bit operands as they are, fp32 ones in tf32, sums in fp32.

Triton's interpreter multiplies the bit patterns of bf16 operands; there they are widened first, which changes nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmbench.kernels.launching import interpreted

__all__ = ["dot", "exactly"]

WIDENED = tl.constexpr(interpreted())


@triton.jit
def dot(a, b, acc=None):
    """a @ b [+ acc] in fp32."""
    if WIDENED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32", out_dtype=tl.float32)


@triton.jit
def exactly(x, like):
    """8-bit elements as `like`'s dtype, which holds them exactly; the interpreter takes bf16 from fp32 only."""
    if WIDENED:
        x = x.to(tl.float32)
    return x.to(like.dtype)
