"""The gate and up products of a mixture of experts, fused with the activation, and their gradient.

mixture.py has the whole mixture.

Shapes: t tokens, k choices per token, R = t·k pairs, D hidden, F intermediate, E experts. Rows of [R, …] are sorted by
expert. `order` [R] has the pair of each row, as the number token · k + slot (sorting.py).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.experts.grouped import multiply, tile_at
from llmbench.kernels.launching import Config, architecture, choose, empty, launch
from llmbench.kernels.numeric import narrowed
from llmbench.kernels.pointwise.glu import ACTIVATIONS, LIMIT, OAI, gate_and_slope
from llmbench.kernels.products import dot

__all__ = ["gated", "gated_gradient"]


# == Kernels ==


@triton.jit
def _multiply_both(
    acc,
    acc2,
    a,
    w,
    w2,
    a_live,
    w_live,
    inner,
    EVEN: tl.constexpr,
    SWAP: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return the products of the same rows with two matrices, as two sums. `grouped.multiply` explains the arguments
    and computes one product."""
    step = tl.arange(0, BLOCK_K)[None, :]
    a, w, w2 = a + step, w + step, w2 + step
    for k in range(0, inner, BLOCK_K):
        if EVEN:
            rows = tl.load(a, mask=a_live, other=0.0)
            columns = tl.load(w, mask=w_live, other=0.0)
            columns2 = tl.load(w2, mask=w_live, other=0.0)
        else:
            inside = step < inner - k
            rows = tl.load(a, mask=a_live & inside, other=0.0)
            columns = tl.load(w, mask=w_live & inside, other=0.0)
            columns2 = tl.load(w2, mask=w_live & inside, other=0.0)
        if SWAP:
            rows = tl.trans(rows)
            acc = dot(columns, rows, acc)
            acc2 = dot(columns2, rows, acc2)
        else:
            acc = dot(rows, tl.trans(columns), acc)
            acc2 = dot(rows, tl.trans(columns2), acc2)
        a += BLOCK_K
        w += BLOCK_K
        w2 += BLOCK_K
    return acc, acc2


@triton.jit
def _halves(x):
    """Return the left and the right half of the columns of x [M, N]. The steps after the product process one half at a
    time if whole tiles would spill registers."""
    M: tl.constexpr = x.shape[0]
    N: tl.constexpr = x.shape[1]
    return tl.split(tl.permute(tl.reshape(x, (M, 2, N // 2)), (0, 2, 1)))


@triton.jit
def _store_gated(
    a, b, first_bias, second_bias, second, h, saved, saved2, bias, corner, place, n, live, width,
    ACT: tl.constexpr,
):  # fmt: skip
    """Add the biases to columns n of the products `a` and `b`, apply the activation, and store the result. `b` is used
    only if there is a `second` matrix."""
    inside = live[:, None] & (n < width)[None, :]
    place = place + n[None, :]
    if first_bias is not None:
        a += tl.load(first_bias + bias + n, mask=n < width, other=0.0).to(tl.float32)[None, :]
    if saved is not None:
        tl.store(saved + corner + place, narrowed(a, h.dtype.element_ty), mask=inside)
    value, _slope = gate_and_slope(a, ACT)
    if second is not None:
        if second_bias is not None:
            b += tl.load(second_bias + bias + n, mask=n < width, other=0.0).to(tl.float32)[None, :]
        if saved2 is not None:
            tl.store(saved2 + corner + place, narrowed(b, h.dtype.element_ty), mask=inside)
        if ACT == OAI:
            b = tl.minimum(tl.maximum(b, -LIMIT), LIMIT) + 1.0
        value = value * b
    tl.store(h + corner + place, narrowed(value, h.dtype.element_ty), mask=inside)


@triton.jit
def gated_forward(
    x, first, second, first_bias, second_bias, h, saved, saved2, order, offsets, tiles, limit, width, inner,
    CHOICES: tl.constexpr, ACT: tl.constexpr, EVEN: tl.constexpr, SWAP: tl.constexpr, HALVES: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program computes a tile of h [R, F] = act(x·firstᵀ) ∘ x·secondᵀ, or of act(x·firstᵀ) without `second`.

    The two products are written to `saved` and `saved2`, if these are not None. The program gathers its rows from x
    [t, D].
    """
    expert, top, column = tile_at(tiles, limit, tl.cdiv(width, BLOCK_N), GROUP)
    if expert < 0:
        return
    row = top + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < tl.load(offsets + expert + 1)
    token = tl.load(order + row, mask=live, other=0) // CHOICES
    rows = x + token.to(tl.int64)[:, None] * inner
    at = expert.to(tl.int64) * width * inner + n.to(tl.int64)[:, None] * inner
    w_live = (n < width)[:, None]
    a = tl.zeros([BLOCK_N, BLOCK_M], tl.float32) if SWAP else tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    if second is None:
        b = a
        a = multiply(a, rows, first + at, live[:, None], w_live, inner, 1, EVEN, SWAP, BLOCK_K)
    else:
        a, b = _multiply_both(
            a, tl.zeros_like(a), rows, first + at, second + at, live[:, None], w_live, inner, EVEN, SWAP, BLOCK_K
        )
    if SWAP:
        a, b = tl.trans(a), tl.trans(b)
    corner = top.to(tl.int64) * width  # The first row of the tile may need 64 bits; offsets in the tile fit in 32.
    place = (tl.arange(0, BLOCK_M) * width)[:, None]
    bias = expert.to(tl.int64) * width
    if HALVES:
        n = column * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        a, right = _halves(a)
        b, right2 = _halves(b)
        _store_gated(a, b, first_bias, second_bias, second, h, saved, saved2, bias, corner, place, n, live, width, ACT)
        a, b = right, right2
        n += BLOCK_N // 2
    _store_gated(a, b, first_bias, second_bias, second, h, saved, saved2, bias, corner, place, n, live, width, ACT)


@triton.jit
def _gated_end(dh, weight, saved, saved2, da, db, scaled, corner, place, n, live, width, ACT: tl.constexpr):
    """Compute da, db and w·h of columns n from dh, and store them. Return each row's sum of dh·h over these columns.
    mixture.py has the formulas."""
    inside = live[:, None] & (n < width)[None, :]
    place = place + n[None, :]
    value, slope = gate_and_slope(tl.load(saved + corner + place, mask=inside, other=0.0).to(tl.float32), ACT)
    h = value
    dy = dh * weight[:, None]
    if saved2 is not None:
        b = tl.load(saved2 + corner + place, mask=inside, other=0.0).to(tl.float32)
        dvalue = dy * value
        if ACT == OAI:
            dvalue = tl.where((b >= -LIMIT) & (b <= LIMIT), dvalue, 0.0)
            b = tl.minimum(tl.maximum(b, -LIMIT), LIMIT) + 1.0
        tl.store(db + corner + place, narrowed(dvalue, db.dtype.element_ty), mask=inside)
        h = value * b
        slope = slope * b
    tl.store(da + corner + place, narrowed(dy * slope, da.dtype.element_ty), mask=inside)
    tl.store(scaled + corner + place, narrowed(h * weight[:, None], scaled.dtype.element_ty), mask=inside)
    return tl.sum(dh * h, axis=1)


@triton.jit
def gated_backward(
    dout, down, saved, saved2, weights, da, db, scaled, sums, order, offsets, tiles, limit, width, inner, pairs,
    CHOICES: tl.constexpr, ACT: tl.constexpr, EVEN: tl.constexpr, SWAP: tl.constexpr, HALVES: tl.constexpr,
    GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program computes a tile of dh = dout · down, and from it da, db, w·h (`scaled`) and the sums of dh·h.

    Each sum is over the tile's columns. `sums` [⌈F / BLOCK_N⌉, R] has one row for each column of tiles. A program
    writes the sum of a pair to the entry whose index is the number of the pair.
    """
    expert, top, column = tile_at(tiles, limit, tl.cdiv(width, BLOCK_N), GROUP)
    if expert < 0:
        return
    row = top + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < tl.load(offsets + expert + 1)
    pair = tl.load(order + row, mask=live, other=0)
    rows = dout + (pair // CHOICES).to(tl.int64)[:, None] * inner
    at = down + expert.to(tl.int64) * width * inner + n[:, None]
    dh = tl.zeros([BLOCK_N, BLOCK_M], tl.float32) if SWAP else tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    dh = multiply(dh, rows, at, live[:, None], (n < width)[:, None], inner, width, EVEN, SWAP, BLOCK_K)
    if SWAP:
        dh = tl.trans(dh)
    weight = tl.load(weights + pair, mask=live, other=0.0).to(tl.float32)
    corner = top.to(tl.int64) * width  # The first row of the tile may need 64 bits; offsets in the tile fit in 32.
    place = (tl.arange(0, BLOCK_M) * width)[:, None]
    if HALVES:
        n = column * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        left, right = _halves(dh)
        part = _gated_end(left, weight, saved, saved2, da, db, scaled, corner, place, n, live, width, ACT)
        n += BLOCK_N // 2
        part += _gated_end(right, weight, saved, saved2, da, db, scaled, corner, place, n, live, width, ACT)
    else:
        part = _gated_end(dh, weight, saved, saved2, da, db, scaled, corner, place, n, live, width, ACT)
    tl.store(sums + column.to(tl.int64) * pairs + pair, part, mask=live)


# == Configurations and launcher ==


def gated_configurations(tile: int, itemsize: int, arch: int, matrices: int) -> list[Config]:
    """Return the candidate configurations. `grouped.product_configurations` gives the reasons. Two matrices with
    BLOCK_N columns each need as many registers and bytes as one matrix with 2·BLOCK_N columns."""
    k = 128 // itemsize
    if tile >= 128:
        shape: dict[str, int] = {"BLOCK_M": 128, "BLOCK_K": k, "SWAP": 0, "GROUP": 8, "num_warps": 8}
        narrow = Config(
            **shape,
            HALVES=0,
            BLOCK_N=128 // matrices,
            num_stages=3,
            note="64 sums per thread, 96 KB of shared memory: two blocks per SM",
        )
        # 128 sums per thread and fp32 operands, or operands of mma.sync, can take too many registers.
        if arch < 90 or itemsize > 2:
            return [narrow]
        note = "a warpgroup has 64 rows of both products, 128 sums per thread; both products share the loaded rows of x"
        return [Config(**shape, HALVES=1, BLOCK_N=256 // matrices, num_stages=4, note=note), narrow]
    if tile == 64:
        note = "one warpgroup, 64 sums per thread, 24 KB per stage: two blocks per SM"
        shape = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": k, "SWAP": 0, "HALVES": 0, "GROUP": 4}
        return [Config(**shape, num_warps=4, num_stages=4, note=note)]
    shape = {"BLOCK_M": tile, "BLOCK_N": 64, "SWAP": 1, "HALVES": 0, "GROUP": 4, "num_warps": 4}
    deep = Config(**shape, BLOCK_K=k, num_stages=5, note="16 KB of weights per stage, 4 in flight, two blocks per SM")
    if tile > 16:  # with more rows, longer iterations leave room for one block only
        return [deep]
    note = "32 KB of weights per stage in lines of 256 B, 2 in flight, two blocks per SM: 128 KB in flight"
    return [Config(**shape, BLOCK_K=2 * k, num_stages=3, note=note), deep]


def gated(
    x: Tensor,
    inner_matrices: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    order: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    tile: int,
    choices: int,
    activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch `gated_forward`. Return h [R, F] and the two products. The products are [R, F] if `keep`, else empty
    tensors.

    `inner_matrices` are the first matrix, the second matrix and their two biases. Without a second matrix, h is
    act(x·firstᵀ).
    """
    first, second, first_bias, second_bias = inner_matrices
    rows, (_, width, inner) = len(order), first.shape
    h = empty(rows, width, like=x)
    saved = empty(rows, width, like=x) if keep else None
    saved2 = empty(rows, width, like=x) if keep and second is not None else None
    matrices = 1 if second is None else 2
    config = choose("gated_forward", gated_configurations(tile, x.element_size(), architecture(x.device), matrices))
    limit = tiles.shape[1]
    launch(
        gated_forward,
        (limit * triton.cdiv(width, config["BLOCK_N"]),),
        config,
        *(x, first, second, first_bias, second_bias, h, saved, saved2),
        *(order, offsets, tiles, limit, width, inner),
        CHOICES=choices,
        ACT=ACTIVATIONS[activation],
        EVEN=inner % config["BLOCK_K"] == 0,
    )
    return h, x.new_empty(0) if saved is None else saved, x.new_empty(0) if saved2 is None else saved2


def gradient_configurations(tile: int, itemsize: int, arch: int) -> list[Config]:
    """Return the candidate configurations. After the product, the kernel reads two tensors and writes three. So its
    tiles are narrower than those of a kernel that only computes a product."""
    k = 128 // itemsize
    if tile >= 128:
        shape: dict[str, int] = {"BLOCK_M": 128, "BLOCK_K": k, "SWAP": 0, "HALVES": 1, "GROUP": 8, "num_warps": 8}
        narrow = Config(
            **shape,
            BLOCK_N=64,
            num_stages=3,
            note="72 KB of shared memory: two blocks, one multiplies while the other stores",
        )
        if itemsize > 2:  # fp32 values need twice the registers: 128 columns would spill
            return [narrow]
        note = "64 sums per thread, stored in two halves; 32 KB per stage"
        return [Config(**shape, BLOCK_N=128, num_stages=4 if arch >= 90 else 3, note=note), narrow]
    shape = {"BLOCK_M": tile, "BLOCK_N": 64, "GROUP": 4, "num_warps": 4, "num_stages": 4}
    if tile == 64:
        note = "one warpgroup, 32 sums per thread, 16 KB per stage: two or three blocks per SM"
        return [Config(**shape, BLOCK_K=k, SWAP=0, HALVES=1, note=note)]
    note = "16 KB of weights per stage, 3 in flight, two blocks per SM"
    return [Config(**shape, BLOCK_K=2 * k, SWAP=1, HALVES=0, note=note)]


def gated_gradient(
    dout: Tensor,
    down: Tensor,
    saved: Tensor,
    saved2: Tensor | None,
    weights: Tensor,
    order: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    tile: int,
    choices: int,
    activation: str,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Launch `gated_backward`. Return da, db and w·h, each [R, F], and the partial sums of dw.

    The partial sums are [⌈F / BLOCK_N⌉, R]: one row for each column of tiles. `db` is None without a second matrix.
    """
    rows, (_, inner, width) = len(order), down.shape
    da, scaled = empty(rows, width, like=dout), empty(rows, width, like=dout)
    db = None if saved2 is None else empty(rows, width, like=dout)
    config = choose("gated_backward", gradient_configurations(tile, dout.element_size(), architecture(dout.device)))
    columns, limit = triton.cdiv(width, config["BLOCK_N"]), tiles.shape[1]
    sums = empty(columns, rows, like=dout, dtype=torch.float32)
    launch(
        gated_backward,
        (limit * columns,),
        config,
        *(dout, down, saved, saved2, weights, da, db, scaled, sums),
        *(order, offsets, tiles, limit, width, inner, rows),
        CHOICES=choices,
        ACT=ACTIVATIONS[activation],
        EVEN=inner % config["BLOCK_K"] == 0,
    )
    return da, db, scaled, sums
