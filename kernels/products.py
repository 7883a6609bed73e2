"""The matrix product of all kernels: 16-bit operands as they are, fp32 ones in tf32, sums in fp32.

Triton's interpreter multiplies the bit patterns of bf16 operands; there they are widened first, which changes nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.launching import capturing, interpreted

__all__ = ["dot", "exactly", "multiply_into", "narrowed"]

WIDENED = tl.constexpr(interpreted())


@triton.jit
def dot(a, b, acc=None):
    """a @ b [+ acc] in fp32."""
    if WIDENED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32", out_dtype=tl.float32)


def multiply_into(out: Tensor, a: Tensor, b: Tensor, *, plus: Tensor | None = None, alpha: float = 1.0) -> None:
    """out = plus + alpha · a @ b by torch's library, without a buffer; `plus` may be `out`. Not run under `captured()`.
    fp32 operands are multiplied as torch's float32_matmul_precision says."""
    if not capturing():
        torch.addmm(out if plus is None else plus, a, b, beta=0 if plus is None else 1, alpha=alpha, out=out)


@triton.jit
def exactly(x, like):
    """8-bit elements as `like`'s dtype, which holds them exactly; the interpreter takes bf16 from fp32 only."""
    if WIDENED:
        x = x.to(tl.float32)
    return x.to(like.dtype)


@triton.jit
def narrowed(x, dtype: tl.constexpr):
    """fp32 as `dtype`, to nearest. The interpreter cuts bf16's last digits off, an error twice as large and always
    towards zero; there half of the last digit is added first, and a tie goes to even."""
    if WIDENED and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        odd = (bits >> 16) & 1
        x = tl.where(x == x, (bits + odd + 0x7FFF).to(tl.float32, bitcast=True), x)
    return x.to(dtype)
