"""Matrix products of all kernels. 16-bit operands are multiplied as they are, fp32 operands in tf32, and sums are in
fp32.

Triton's interpreter would multiply the bit patterns of bf16 operands. So `dot` first converts bf16 operands to fp32,
which is exact.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.launching import capturing
from llmbench.kernels.numeric import INTERPRETED

__all__ = ["dot", "multiply_into"]


@triton.jit
def dot(a, b, acc=None):
    """Return a @ b in fp32, plus `acc` if it is given."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="tf32", out_dtype=tl.float32)


def multiply_into(out: Tensor, a: Tensor, b: Tensor, *, plus: Tensor | None = None, alpha: float = 1.0) -> None:
    """Compute out = plus + alpha · a @ b with torch's library, without a temporary. `plus` may be `out`.

    torch's float32_matmul_precision decides how fp32 operands are multiplied. Nothing runs under `captured()`.
    """
    if not capturing():
        torch.addmm(out if plus is None else plus, a, b, beta=0 if plus is None else 1, alpha=alpha, out=out)
