"""Norms of rows that fit in a program's registers: kernels and configurations. norm.py has the maths.

A program keeps a row, or several narrow rows, in registers. It computes the statistics in two passes over these
registers, so LayerNorm's variance loses no digits by cancellation. In the backward pass, the number of programs depends
only on shapes and the GPU, and each program loops over its rows. Each program keeps its own sums over rows, and
`norm_column_sums` adds the sums of all programs in a fixed order. Loads do not use TMA, because a TMA load directly
before a reduction is slower.
"""

from __future__ import annotations

import triton
import triton.language as tl

from llmbench.kernels.launching import Config

__all__ = [
    "RESIDENT",
    "backward_configurations",
    "forward_configurations",
    "norm_backward",
    "norm_column_sums",
    "norm_forward",
]

RESIDENT = 16
"""Warps of the backward kernel that fit on a multiprocessor, at up to 128 registers per thread."""


# == Kernels ==


@triton.jit
def _rows(tile, outer, inner, head, PER_HEAD: tl.constexpr, ROWS: tl.constexpr):
    """Return four values [ROWS, 1] for the rows of a tile: their index, their indices in O and N, and whether they
    exist.

    With a weight per head, all rows of a tile belong to one head.
    """
    at = (tile * ROWS + tl.arange(0, ROWS))[:, None]
    if PER_HEAD:
        return (at * inner + head).to(tl.int64), at.to(tl.int64), (at * 0 + head).to(tl.int64), at < outer
    return at.to(tl.int64), (at // inner).to(tl.int64), (at % inner).to(tl.int64), at < outer * inner


@triton.jit
def norm_forward(
    x, residual, weight, bias, out, summed, stats, x_outer, x_inner, residual_outer, residual_inner, outer, inner,
    width, eps,
    CENTRED: tl.constexpr, UNIT_OFFSET: tl.constexpr, PER_HEAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program computes ROWS whole rows. stats [1 or 2, O·N] are r, and μ for LayerNorm."""
    tile, head = tl.program_id(0), 0
    if PER_HEAD:  # heads of a token are adjacent in memory, so adjacent programs compute them
        tile, head = tile // inner, tile % inner
    row, at_outer, at_inner, exists = _rows(tile, outer, inner, head, PER_HEAD, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    in_row = column < width
    inside = exists & in_row
    v = tl.load(x + at_outer * x_outer + at_inner * x_inner + column, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        r = tl.load(residual + at_outer * residual_outer + at_inner * residual_inner + column, mask=inside, other=0.0)
        v = (v + r.to(tl.float32)).to(summed.dtype.element_ty)
        tl.store(summed + row * width + column, v, mask=inside)
        v = v.to(tl.float32)
    # `part` has the layout of x, so the weight is loaded for every row. All rows but the first find the weight in the
    # L1 cache.
    part = tl.broadcast_to(column, [ROWS, BLOCK])
    if PER_HEAD and weight is not None:
        weight += tl.cast(head, tl.int64) * width
    if PER_HEAD and bias is not None:
        bias += tl.cast(head, tl.int64) * width
    if weight is not None:  # loaded before the reduction, so that the load overlaps with it
        w = tl.load(weight + part, mask=in_row, other=0.0)
    if bias is not None:
        b = tl.load(bias + part, mask=in_row, other=0.0)
    if CENTRED:
        mean = tl.sum(v, axis=1, keep_dims=True) / width
        v = tl.where(inside, v - mean, 0.0)
        tl.store(stats + row + outer * inner, mean, mask=exists)
    rstd = tl.rsqrt(tl.sum(v * v, axis=1, keep_dims=True) / width + eps)
    tl.store(stats + row, rstd, mask=exists)
    y = v * rstd
    if weight is not None:
        w = w.to(tl.float32)
        if UNIT_OFFSET:
            w += 1.0
        y *= w
    if bias is not None:
        y += b.to(tl.float32)
    tl.store(out + row * width + column, y.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _normed_and_g(v, dy, w, mean, rstd, UNIT_OFFSET: tl.constexpr):
    """Return x̂ and dout · w. Past the end of a row, dout is 0, so x̂ has no effect there."""
    v, g = v.to(tl.float32) - mean, dy.to(tl.float32)
    if w is not None:
        w = w.to(tl.float32)
        if UNIT_OFFSET:
            w += 1.0
        g *= w
    return v * rstd, g


@triton.jit
def norm_backward(
    dout, dsummed, x, weight, stats, dx, partial, dout_outer, dout_inner, dsummed_outer, dsummed_inner, x_outer,
    x_inner, outer, inner, width, tiles, programs,
    CENTRED: tl.constexpr, UNIT_OFFSET: tl.constexpr, PER_HEAD: tl.constexpr, WEIGHT_GRAD: tl.constexpr,
    BIAS_GRAD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr, HOLD: tl.constexpr,
):  # fmt: skip
    """One program computes dx of every `programs`-th tile of rows, and the sums over these rows.

    The program writes its sums to partial [sums, programs, N or 1, W]. HOLD: the weight stays in registers, and all
    loads of a row are issued at once.
    """
    program, head, heads = tl.program_id(0), 0, 1
    if PER_HEAD:
        program, head, heads = program // inner, program % inner, inner
    column = tl.arange(0, BLOCK)[None, :]
    in_row = column < width
    part = tl.broadcast_to(column, [ROWS, BLOCK])  # `part` has the layout of x, as in norm_forward
    if PER_HEAD and weight is not None:
        weight += tl.cast(head, tl.int64) * width
    w = None
    if HOLD and weight is not None:
        w = tl.load(weight + part, mask=in_row, other=0.0)
    if WEIGHT_GRAD:
        dweight = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    if BIAS_GRAD:
        dbias = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for tile in tl.range(program, tiles, programs, num_stages=STAGES):
        row, at_outer, at_inner, exists = _rows(tile, outer, inner, head, PER_HEAD, ROWS)
        inside = exists & in_row
        x_place = at_outer * x_outer + at_inner * x_inner + column
        dout_place = at_outer * dout_outer + at_inner * dout_inner + column
        v = tl.load(x + x_place, mask=inside, other=0.0)
        dy = tl.load(dout + dout_place, mask=inside, other=0.0)
        if HOLD and dsummed is not None:
            place = dsummed + at_outer * dsummed_outer + at_inner * dsummed_inner + column
            added = tl.load(place, mask=inside, other=0.0)
        rstd = tl.load(stats + row, mask=exists, other=0.0)
        mean = 0.0
        if CENTRED:
            mean = tl.load(stats + row + outer * inner, mask=exists, other=0.0)
        factor = w
        if not HOLD and weight is not None:
            factor = tl.load(weight + part, mask=in_row, other=0.0)
        normed, g = _normed_and_g(v, dy, factor, mean, rstd, UNIT_OFFSET)
        if WEIGHT_GRAD:
            dweight += dy.to(tl.float32) * normed
        if BIAS_GRAD:
            dbias += dy.to(tl.float32)
        # One reduction computes both sums. With two reductions, g would stay in registers until the second reduction.
        if CENTRED:
            along, whole = tl.split(tl.sum(tl.join(g * normed, g), axis=1) / width)
            along, whole = along[:, None], whole[:, None]
        else:
            along, whole = tl.sum(g * normed, axis=1, keep_dims=True) / width, 0.0
        # Load the row again, from the L1 cache. The second load has a different cache policy, so that the compiler does
        # not merge the two loads and keep the values in registers.
        if not HOLD:
            v = tl.load(x + x_place, mask=inside, other=0.0, eviction_policy="evict_first")
            dy = tl.load(dout + dout_place, mask=inside, other=0.0, eviction_policy="evict_first")
            if weight is not None:
                factor = tl.load(weight + part, mask=in_row, other=0.0, eviction_policy="evict_last")
            normed, g = _normed_and_g(v, dy, factor, mean, rstd, UNIT_OFFSET)
        d = (g - normed * along - whole) * rstd
        if dsummed is not None:
            if not HOLD:
                place = dsummed + at_outer * dsummed_outer + at_inner * dsummed_inner + column
                added = tl.load(place, mask=inside, other=0.0)
            d += added.to(tl.float32)
        tl.store(dx + row * width + column, d.to(dx.dtype.element_ty), mask=inside)
    share = partial + (program * heads + head).to(tl.int64) * width + tl.arange(0, BLOCK)
    if WEIGHT_GRAD:
        tl.store(share, tl.sum(dweight, axis=0), mask=tl.arange(0, BLOCK) < width)
    if BIAS_GRAD:
        share += WEIGHT_GRAD * tl.cast(programs, tl.int64) * heads * width
        tl.store(share, tl.sum(dbias, axis=0), mask=tl.arange(0, BLOCK) < width)


@triton.jit
def norm_column_sums(partial, first, second, programs, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Add the sums of all programs, partial [sums, programs, columns]. Write the results to `first` and `second`
    [columns]."""
    index = tl.program_id(1)
    at = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    partial += index.to(tl.int64) * programs * columns
    total = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for start in tl.range(0, programs, ROWS):
        place = (start + at).to(tl.int64) * columns + column[None, :]
        total += tl.load(partial + place, mask=(start + at < programs) & (column < columns)[None, :], other=0.0)
    sums = tl.sum(total, axis=0)
    if index == 0:
        tl.store(first + column, sums.to(first.dtype.element_ty), mask=column < columns)
    elif second is not None:
        tl.store(second + column, sums.to(second.dtype.element_ty), mask=column < columns)


# == Configurations ==


def forward_configurations(width: int) -> list[Config]:
    """Return the candidate configurations. With 16 values per thread and tensor, a thread has two 16-byte loads in bf16
    and about 40 registers. So 48 to 64 warps fit on a multiprocessor, each with 1 KiB in flight. The latency of memory
    requires about 32 KiB in flight per multiprocessor."""
    block = max(16, triton.next_power_of_2(width))
    # Up to width 512, a program computes several rows, so that a reduction crosses few warps or none.
    rows = max(1, 2048 // block) if block <= 512 else 1
    warps = max(1, min(16, rows * block // 512))
    return [
        Config(ROWS=rows, BLOCK=block, num_warps=warps, note="16 values per thread and tensor, up to 16 warps"),
        Config(
            ROWS=rows, BLOCK=block, num_warps=max(1, warps // 2), note="fewer warps to synchronise in the reduction"
        ),
    ]


def backward_configurations(width: int, itemsize: int, tensors: int) -> list[Config]:
    """Return the candidate configurations. Registers keep a row and the sums over rows. So a thread has 16 values in 80
    to 128 registers, and 16 warps fit on a multiprocessor.

    16 warps are too few to hide the latency of memory. The next rows are therefore copied into shared memory in advance
    (STAGES), within 96 KiB for all programs of a multiprocessor. For example, 2 rows of x and of dout with 4096 bf16
    values are 64 KiB in flight.

    Two cases have too many values: 32 values per thread (width 16384), and three fp32 tensors of 16 values per thread.
    In these cases, neither the weight nor the row stays in registers across the reduction. The kernel then needs 116
    registers and does not spill.
    """
    block = max(16, triton.next_power_of_2(width))
    rows = max(1, 2048 // block) if block <= 512 else 1
    warps = max(1, min(16, rows * block // 512))
    if block > 8192 or block * itemsize * tensors > 65536:
        note = f"{block // (32 * warps)} values per thread; each row is read twice"
        return [Config(ROWS=1, BLOCK=block, STAGES=1, HOLD=0, num_warps=warps, note=note)]
    stages = max(1, min(3, (96 << 10) // (rows * block * itemsize * tensors * (RESIDENT // warps))))
    note = "16 values per thread; the next rows are in flight"
    return [
        Config(ROWS=rows, BLOCK=block, STAGES=stages, HOLD=1, num_warps=warps, note=note),
        Config(
            ROWS=rows,
            BLOCK=block,
            STAGES=1,
            HOLD=1,
            num_warps=warps,
            note="no rows are copied in advance: fewer instructions",
        ),
    ]
