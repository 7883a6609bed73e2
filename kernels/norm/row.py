"""Norms of rows that a program's registers hold: the kernels and their configurations. The maths stands in `norms`.

A program holds a row, or several narrow ones, so that statistics take two passes over registers and LayerNorm's
variance does not cancel. Backward, programs that stay (a number fixed by the GPU) hold a sum each for the rows they
meet, and `norm_column_sums` adds those sums in a fixed order. Plain loads: a TMA load straight into a reduction is
slower.
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
"""Warps that a multiprocessor holds of the backward kernel, at up to 128 registers."""


@triton.jit
def _rows(tile, outer, inner, head, PER_HEAD: tl.constexpr, ROWS: tl.constexpr):
    """The rows of a tile as [ROWS, 1]: their number, their places in O and N, and whether they exist. With a weight
    per head a tile holds rows of one head."""
    at = (tile * ROWS + tl.arange(0, ROWS))[:, None]
    if PER_HEAD:
        return (at * inner + head).to(tl.int64), at.to(tl.int64), at * 0 + head, at < outer
    return at.to(tl.int64), (at // inner).to(tl.int64), at % inner, at < outer * inner


@triton.jit
def norm_forward(
    x,
    residual,
    weight,
    bias,
    out,
    summed,
    stats,
    x_outer,
    x_inner,
    residual_outer,
    residual_inner,
    outer,
    inner,
    width,
    eps,
    CENTRED: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    PER_HEAD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program: ROWS whole rows. stats [1 or 2, O·N]: r, then μ."""
    tile, head = tl.program_id(0), 0
    if PER_HEAD:  # the heads of a token lie side by side, and so do the programs that read them
        tile, head = tile // inner, tile % inner
    row, at_outer, at_inner, there = _rows(tile, outer, inner, head, PER_HEAD, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    known = column < width
    inside = there & known
    v = tl.load(x + at_outer * x_outer + at_inner * x_inner + column, mask=inside, other=0.0).to(tl.float32)
    if residual is not None:
        r = tl.load(residual + at_outer * residual_outer + at_inner * residual_inner + column, mask=inside, other=0.0)
        v = (v + r.to(tl.float32)).to(summed.dtype.element_ty)
        tl.store(summed + row * width + column, v, mask=inside)
        v = v.to(tl.float32)
    part = tl.broadcast_to(head * width + column, [ROWS, BLOCK])  # as threads hold x; read again from the L1 cache
    if weight is not None:  # asked for before the row is reduced
        w = tl.load(weight + part, mask=known, other=0.0)
    if bias is not None:
        b = tl.load(bias + part, mask=known, other=0.0)
    if CENTRED:
        mean = tl.sum(v, axis=1, keep_dims=True) / width
        v = tl.where(inside, v - mean, 0.0)
        tl.store(stats + row + outer * inner, mean, mask=there)
    rstd = tl.rsqrt(tl.sum(v * v, axis=1, keep_dims=True) / width + eps)
    tl.store(stats + row, rstd, mask=there)
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
    """x̂ and dout · w. Past a row's end dout is 0, and so is all that x̂ is multiplied with."""
    v, g = v.to(tl.float32) - mean, dy.to(tl.float32)
    if w is not None:
        w = w.to(tl.float32)
        if UNIT_OFFSET:
            w += 1.0
        g *= w
    return v * rstd, g


@triton.jit
def norm_backward(
    dout,
    dsummed,
    x,
    weight,
    stats,
    dx,
    partial,
    dout_outer,
    dout_inner,
    dsummed_outer,
    dsummed_inner,
    x_outer,
    x_inner,
    outer,
    inner,
    width,
    tiles,
    programs,
    CENTRED: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
    PER_HEAD: tl.constexpr,
    WEIGHT_GRAD: tl.constexpr,
    BIAS_GRAD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    STAGES: tl.constexpr,
    HOLD: tl.constexpr,
):
    """A program: dx of every `programs`-th tile of rows, and its share of the sums over rows,
    partial [sums, programs, N or 1, W]. HOLD: the weight stays in registers, and all of a row is asked for at once."""
    program, head, heads = tl.program_id(0), 0, 1
    if PER_HEAD:
        program, head, heads = program // inner, program % inner, inner
    column = tl.arange(0, BLOCK)[None, :]
    known = column < width
    part = tl.broadcast_to(head * width + column, [ROWS, BLOCK])  # as threads hold x
    w = None
    if HOLD and weight is not None:
        w = tl.load(weight + part, mask=known, other=0.0)
    if WEIGHT_GRAD:
        dweight = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    if BIAS_GRAD:
        dbias = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for tile in tl.range(program, tiles, programs, num_stages=STAGES):
        row, at_outer, at_inner, there = _rows(tile, outer, inner, head, PER_HEAD, ROWS)
        inside = there & known
        x_place = at_outer * x_outer + at_inner * x_inner + column
        dout_place = at_outer * dout_outer + at_inner * dout_inner + column
        v = tl.load(x + x_place, mask=inside, other=0.0)
        dy = tl.load(dout + dout_place, mask=inside, other=0.0)
        if HOLD and dsummed is not None:
            place = dsummed + at_outer * dsummed_outer + at_inner * dsummed_inner + column
            added = tl.load(place, mask=inside, other=0.0)
        rstd = tl.load(stats + row, mask=there, other=0.0)
        mean = 0.0
        if CENTRED:
            mean = tl.load(stats + row + outer * inner, mask=there, other=0.0)
        factor = w
        if not HOLD and weight is not None:
            factor = tl.load(weight + part, mask=known, other=0.0)
        normed, g = _normed_and_g(v, dy, factor, mean, rstd, UNIT_OFFSET)
        if WEIGHT_GRAD:
            dweight += dy.to(tl.float32) * normed
        if BIAS_GRAD:
            dbias += dy.to(tl.float32)
        if CENTRED:  # both sums in one reduction: in two, g would have to be held across the first
            along, whole = tl.split(tl.sum(tl.join(g * normed, g), axis=1) / width)
            along, whole = along[:, None], whole[:, None]
        else:
            along, whole = tl.sum(g * normed, axis=1, keep_dims=True) / width, 0.0
        if not HOLD:  # from the L1 cache; read with another policy, or the compiler would keep the first reading
            v = tl.load(x + x_place, mask=inside, other=0.0, eviction_policy="evict_first")
            dy = tl.load(dout + dout_place, mask=inside, other=0.0, eviction_policy="evict_first")
            if weight is not None:
                factor = tl.load(weight + part, mask=known, other=0.0, eviction_policy="evict_last")
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
        share += WEIGHT_GRAD * programs.to(tl.int64) * heads * width
        tl.store(share, tl.sum(dbias, axis=0), mask=tl.arange(0, BLOCK) < width)


@triton.jit
def norm_column_sums(partial, first, second, programs, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over the programs of partial [sums, programs, columns], into `first` and `second` [columns]."""
    which = tl.program_id(1)
    at = tl.arange(0, ROWS)[:, None]
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    partial += which.to(tl.int64) * programs * columns
    total = tl.zeros([ROWS, BLOCK], dtype=tl.float32)
    for start in tl.range(0, programs, ROWS):
        place = (start + at).to(tl.int64) * columns + column[None, :]
        total += tl.load(partial + place, mask=(start + at < programs) & (column < columns)[None, :], other=0.0)
    found = tl.sum(total, axis=0)
    if which == 0:
        tl.store(first + column, found.to(first.dtype.element_ty), mask=column < columns)
    elif second is not None:
        tl.store(second + column, found.to(second.dtype.element_ty), mask=column < columns)


def forward_configurations(width: int) -> list[Config]:
    """16 values a thread and tensor are two 16-byte loads in bf16, and about 40 registers: 48 to 64 warps a
    multiprocessor, each with 1 KiB under way, against the 32 KiB or so that the memory's latency asks for."""
    block = max(16, triton.next_power_of_2(width))
    rows = max(1, 2048 // block) if block <= 512 else 1  # half a warp or more a row: little or nothing crosses warps
    warps = max(1, min(16, rows * block // 512))
    return [
        Config(ROWS=rows, BLOCK=block, num_warps=warps, note="16 values a thread and tensor, up to 16 warps"),
        Config(ROWS=rows, BLOCK=block, num_warps=max(1, warps // 2), note="fewer warps meet in the reduction"),
    ]


def backward_configurations(width: int, itemsize: int, tensors: int) -> list[Config]:
    """Sums over rows live in registers beside a row, so 16 values a thread: 80 to 128 registers and 16 warps a
    multiprocessor. Those are too few to hide memory by themselves: the next rows are copied into shared memory
    meanwhile (STAGES), as far as 96 KiB for all programs of a multiprocessor reach: 2 rows ahead of x and dout of
    4096 bf16 are 64 KiB under way. At 32 values a thread (16384), or 16 of three fp32 tensors, neither weight nor row
    is held through the reduction: 116 registers instead of a spill."""
    block = max(16, triton.next_power_of_2(width))
    rows = max(1, 2048 // block) if block <= 512 else 1
    warps = max(1, min(16, rows * block // 512))
    if block > 8192 or block * itemsize * tensors > 65536:
        note = f"{block // (32 * warps)} values a thread, read twice"
        return [Config(ROWS=1, BLOCK=block, STAGES=1, HOLD=0, num_warps=warps, note=note)]
    stages = max(1, min(3, (96 << 10) // (rows * block * itemsize * tensors * (RESIDENT // warps))))
    note = "16 values a thread, the next rows on their way"
    return [
        Config(ROWS=rows, BLOCK=block, STAGES=stages, HOLD=1, num_warps=warps, note=note),
        Config(ROWS=rows, BLOCK=block, STAGES=1, HOLD=1, num_warps=warps, note="no copies ahead: fewer instructions"),
    ]
