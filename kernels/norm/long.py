"""Norms of rows wider than a program's registers, one block of columns at a time. norm.py has the maths.

The forward kernel reads a row twice. The first time, it merges the mean and the squared deviations of the blocks (Chan,
Golub and LeVeque, 1979), which avoids cancellation. The second time, the row is still in the L2 cache. The backward
kernel also reads a row twice, and computes dx. A separate kernel computes the sums over rows, in blocks of columns, and
reads x and dout once more.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor, float32

from llmbench.kernels.launching import Config, choose, empty, launch, multiprocessors

__all__ = ["configurations", "norm_backward_long", "norm_forward_long", "row_sums"]


# == Kernels ==


@triton.jit
def norm_forward_long(
    x, residual, weight, bias, out, summed, stats, x_outer, x_inner, residual_outer, residual_inner, outer, inner,
    width, eps,
    CENTRED: tl.constexpr, UNIT_OFFSET: tl.constexpr, PER_HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program computes one row."""
    row = tl.program_id(0).to(tl.int64)
    head = (row % inner) * PER_HEAD
    x += row // inner * x_outer + row % inner * x_inner
    out += row * width
    if residual is not None:
        residual += row // inner * residual_outer + row % inner * residual_inner
        summed += row * width
    mean, deviations = 0.0, 0.0
    for start in tl.range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        v = tl.load(x + column, mask=inside, other=0.0).to(tl.float32)
        if residual is not None:
            r = tl.load(residual + column, mask=inside, other=0.0).to(tl.float32)
            v = (v + r).to(summed.dtype.element_ty)
            tl.store(summed + column, v, mask=inside)
            v = v.to(tl.float32)
        if CENTRED:
            count = tl.minimum(width - start, BLOCK)
            block_mean = tl.sum(v, axis=0) / count
            v = tl.where(inside, v - block_mean, 0.0)
            shift = block_mean - mean
            share = count.to(tl.float32) / (start + count)
            deviations += shift * shift * share * start
            mean += shift * share
        deviations += tl.sum(v * v, axis=0)
    rstd = tl.rsqrt(deviations / width + eps)
    tl.store(stats + row, rstd)
    if CENTRED:
        tl.store(stats + row + tl.num_programs(0), mean)
    if residual is not None:
        tl.debug_barrier()  # the whole row of `summed` must be written before it is read again
        x = summed + row * 0
    for start in tl.range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        y = (tl.load(x + column, mask=inside, other=0.0).to(tl.float32) - mean) * rstd
        if weight is not None:
            w = tl.load(weight + head * width + column, mask=inside, other=0.0).to(tl.float32)
            if UNIT_OFFSET:
                w += 1.0
            y *= w
        if bias is not None:
            y += tl.load(bias + head * width + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + column, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward_long(
    dout, dsummed, x, weight, stats, dx, dout_outer, dout_inner, dsummed_outer, dsummed_inner, x_outer, x_inner, outer,
    inner, width,
    CENTRED: tl.constexpr, UNIT_OFFSET: tl.constexpr, PER_HEAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program computes dx of one row."""
    row = tl.program_id(0).to(tl.int64)
    at_outer, at_inner = row // inner, row % inner
    head = at_inner * PER_HEAD
    x += at_outer * x_outer + at_inner * x_inner
    dout += at_outer * dout_outer + at_inner * dout_inner
    dx += row * width
    rstd, mean = tl.load(stats + row), 0.0
    if CENTRED:
        mean = tl.load(stats + row + tl.num_programs(0))
    along, whole = 0.0, 0.0  # Σ g · x̂ and Σ g
    for start in tl.range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        normed = (tl.load(x + column, mask=inside, other=0.0).to(tl.float32) - mean) * rstd
        g = tl.load(dout + column, mask=inside, other=0.0).to(tl.float32)
        if weight is not None:
            w = tl.load(weight + head * width + column, mask=inside, other=0.0).to(tl.float32)
            if UNIT_OFFSET:
                w += 1.0
            g *= w
        along += tl.sum(g * normed, axis=0)
        whole += tl.sum(g, axis=0)
    along, whole = along / width, whole / width
    for start in tl.range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        normed = (tl.load(x + column, mask=inside, other=0.0).to(tl.float32) - mean) * rstd
        g = tl.load(dout + column, mask=inside, other=0.0).to(tl.float32)
        if weight is not None:
            w = tl.load(weight + head * width + column, mask=inside, other=0.0).to(tl.float32)
            if UNIT_OFFSET:
                w += 1.0
            g *= w
        d = g - normed * along
        if CENTRED:
            d -= whole
        d *= rstd
        if dsummed is not None:
            place = dsummed + at_outer * dsummed_outer + at_inner * dsummed_inner + column
            d += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + column, d.to(dx.dtype.element_ty), mask=inside)


@triton.jit
def norm_sums(
    dout, x, stats, partial, dout_outer, dout_inner, x_outer, x_inner, outer, inner, heads, width,
    CENTRED: tl.constexpr, WEIGHT_GRAD: tl.constexpr, BIAS_GRAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program sums BLOCK columns over every `programs`-th tile of ROWS rows. The rows are those of one head, or all
    rows if `heads` is 1.

    The program writes its sums to partial [sums, programs, heads, W].
    """
    block, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    program, programs = tl.program_id(1), tl.num_programs(1)
    column = block * BLOCK + tl.arange(0, BLOCK)[None, :]
    in_row = column < width
    rows = outer * (inner // heads)
    dweight = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    dbias = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for start in tl.range(program * ROWS, rows, programs * ROWS):
        at = start + tl.arange(0, ROWS)[:, None]
        exists = at < rows
        inside = exists & in_row
        row = (at * heads + head).to(tl.int64)
        at_outer, at_inner = row // inner, row % inner
        v = tl.load(x + at_outer * x_outer + at_inner * x_inner + column, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dout + at_outer * dout_outer + at_inner * dout_inner + column, mask=inside, other=0.0)
        dy = dy.to(tl.float32)
        if CENTRED:
            v -= tl.load(stats + row + outer * inner, mask=exists, other=0.0)
        dweight += dy * (v * tl.load(stats + row, mask=exists, other=0.0))
        dbias += dy
    share = partial + (program * heads + head).to(tl.int64) * width + column
    if WEIGHT_GRAD:
        tl.store(share, tl.sum(dweight, axis=0, keep_dims=True), mask=in_row)
    if BIAS_GRAD:
        share += WEIGHT_GRAD * programs.to(tl.int64) * heads * width
        tl.store(share, tl.sum(dbias, axis=0, keep_dims=True), mask=in_row)


# == Configurations and launcher ==


def configurations() -> list[Config]:
    """Return the configuration. One program computes one row."""
    return [Config(BLOCK=4096, num_warps=8, note="16 values per thread and tensor; 8 to 12 KiB in flight per program")]


def row_sums(dout: Tensor, x: Tensor, stats: Tensor, heads: int, weight_grad: bool, bias_grad: bool) -> Tensor:
    """Return the sums of dout · x̂ and of dout over rows, as [1 or 2, programs, heads · W], for dout and x [O, N,
    W]. norm.py defines O, N and W."""
    outer, inner, width = x.shape
    note = "two rows of 2 KiB per tile; 16 values per thread and tensor"
    config = choose("norm_sums", [Config(ROWS=2, BLOCK=1024, num_warps=4, note=note)])
    blocks = triton.cdiv(width, config["BLOCK"])
    tiles = triton.cdiv(outer * (inner // heads), config["ROWS"])
    programs = max(1, min(tiles, triton.cdiv(4 * multiprocessors(x.device), blocks * heads)))
    partial = empty(weight_grad + bias_grad, programs, heads * width, like=x, dtype=float32)
    strides = dout.stride(0), dout.stride(1), x.stride(0), x.stride(1)
    flags = {"CENTRED": stats.shape[0] > 1, "WEIGHT_GRAD": weight_grad, "BIAS_GRAD": bias_grad}
    grid = blocks * heads, programs
    launch(norm_sums, grid, config, dout, x, stats, partial, *strides, outer, inner, heads, width, **flags)
    return partial
