"""Arithmetic that several kernels share: the base of exponentials, tanh, and conversions between number formats.

Triton's interpreter computes with numpy, which has no bf16. Functions whose results would be wrong first convert bf16
operands to fp32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmbench.kernels.launching import interpreted

__all__ = ["INTERPRETED", "LOG2E", "narrowed", "quick_tanh", "tanh", "widened"]

INTERPRETED = tl.constexpr(interpreted())
# log2(e): exp(x) is computed as exp2(x · LOG2E), because GPUs have an instruction for exp2
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def widened(x, like):
    """Convert 8-bit elements to the dtype of `like`, which represents them exactly.

    The interpreter converts only fp32 to bf16. So it first converts the elements to fp32."""
    if INTERPRETED:
        x = x.to(tl.float32)
    return x.to(like.dtype)


@triton.jit
def narrowed(x, dtype: tl.constexpr):
    """Round fp32 to the nearest number of `dtype`. If two numbers are equally near, take the one whose last bit is 0.

    The interpreter truncates to bf16, so the error would be twice as large and always towards zero. In the interpreter,
    half of the last bf16 digit is therefore added before the truncation. Numbers below the smallest normal one, such as
    0, stay as they are: the interpreter would convert 0 plus half of a digit to the smallest normal number.
    """
    if INTERPRETED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        odd = (bits >> 16) & 1
        normal = (x == x) & ((bits & 0x7F800000) != 0)
        x = tl.where(normal, (bits + odd + 0x7FFF).to(tl.float32, bitcast=True), x)
    return x.to(dtype)


@triton.jit
def quick_tanh(x, EXACT: tl.constexpr):
    """Return tanh(x), computed from one exponential as a quotient. Near 0, the quotient loses digits. With EXACT, which
    fp32 results need, a series replaces the quotient near 0."""
    e = tl.exp2(tl.abs(x) * -2.8853900817779268)
    value = (1.0 - e) / (1.0 + e)
    if EXACT:
        y = x * x
        series = 1.0 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835 - y * (1382 / 155925)))))
        value = tl.where(y < 0.09, tl.abs(x) * series, value)
    return tl.where(x < 0.0, -value, value)


@triton.jit
def tanh(x):
    """Return tanh(x) with an error of at most 2 roundings.

    With e = exp(-2|x|), |tanh(x)| is the quotient (1 - e) / (1 + e). Near 0, 1 - e loses its digits. There, an odd
    polynomial (fitted on |x| ≤ 0.6) replaces the quotient.
    """
    e = tl.exp(tl.abs(x) * -2.0)
    far = (1.0 - e) / (1.0 + e)
    u = x * x
    series = (((u * -0.00585783 + 0.020771) * u - 0.05377915) * u + 0.13331912) * u - 0.333333
    return tl.where(u < 0.36, x + x * u * series, tl.where(x < 0.0, -far, far))
