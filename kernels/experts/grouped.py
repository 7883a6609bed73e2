"""Grouped matrix products: rows sorted by expert, each expert with its own matrix, in one launch.

    y[r] = W[e(r)] · x[r]          W [E, N, K]; expert e has the rows offsets[e] to offsets[e + 1]
    dx[r] = W[e(r)]ᵀ · dy[r]       dW[e] = Σ over the rows of e of dy[r] ⊗ x[r]

The grid has the greatest possible number of tiles (sorting.py); a program without a tile ends at once. Programs take
GROUP rows of tiles at a time, so that concurrent programs share weights and rows in the L2 cache. If experts have few
rows, tiles have 16 or 32 rows, and the operands are exchanged (SWAP). The weights are then the 128 rows of the
tensor-core instruction, and the tokens are its 16 or 32 columns. Every weight passes through shared memory once.

fp32 operands are multiplied in tf32 on a GPU; sums are in fp32. There are no atomic additions, so results repeat
exactly. Shapes: R rows, E experts; every row belongs to an expert, offsets[E] = R. N and K are at most MAX_WIDTH, so
that offsets within a tile fit in 32 bits.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from llmbench.kernels.experts.sorting import rows_per_tile, tiles_from_offsets
from llmbench.kernels.kernel import Cost, Draw, Inputs, Kernel, Random
from llmbench.kernels.launching import Config, architecture, choose, empty, launch
from llmbench.kernels.numeric import narrowed
from llmbench.kernels.products import dot

__all__ = ["KERNEL", "MAX_WIDTH", "grouped_matmul", "multiply", "product", "reference", "tile_at", "weight_gradient"]

MAX_WIDTH = 1 << 22
"""The most rows and columns of an expert's matrix."""


# == Kernels ==


@triton.jit
def tile_at(tiles, limit, columns, GROUP: tl.constexpr):
    """Return the expert, the first row and the column of this program's tile. Consecutive programs take GROUP tiles
    below each other, then the GROUP tiles to the right of them."""
    program = tl.program_id(0)
    band = columns * GROUP
    top = program // band * GROUP
    height = tl.minimum(limit - top, GROUP)
    tile = top + program % band % height
    return tl.load(tiles + tile), tl.load(tiles + limit + tile), program % band // height


@triton.jit
def multiply(
    acc,
    a,
    w,
    a_live,
    w_live,
    inner,
    w_inner,
    EVEN: tl.constexpr,
    SWAP: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Return acc + A·Wᵀ, or acc + W·Aᵀ with SWAP, summed over `inner`.

    Rows of A and W start at the pointers a [M, 1] and w [N, 1]. Along a row, A has stride 1 and W has stride `w_inner`.
    EVEN: BLOCK_K divides `inner`."""
    step = tl.arange(0, BLOCK_K)[None, :]
    a = a + step
    w = w + step * w_inner
    for k in range(0, inner, BLOCK_K):
        if EVEN:
            rows = tl.load(a, mask=a_live, other=0.0)
            columns = tl.load(w, mask=w_live, other=0.0)
        else:
            inside = step < inner - k
            rows = tl.load(a, mask=a_live & inside, other=0.0)
            columns = tl.load(w, mask=w_live & inside, other=0.0)
        acc = dot(columns, tl.trans(rows), acc) if SWAP else dot(rows, tl.trans(columns), acc)
        a += BLOCK_K
        w += w_inner * BLOCK_K
    return acc


@triton.jit
def grouped_product(
    a, w, a2, w2, bias, scale, out, order, offsets, tiles, limit, width, inner, w_row, w_inner,
    EVEN: tl.constexpr, SWAP: tl.constexpr, GROUP: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program computes BLOCK_M × BLOCK_N elements of out [R, width]: (A·W[e]ᵀ + A2·W2[e]ᵀ + bias[e]) · scale.

    With `order`, row r is written to row order[r] of out, and its scale is scale[order[r]]. Without `order`, row r is
    written to row r.
    """
    expert, first, column = tile_at(tiles, limit, tl.cdiv(width, BLOCK_N), GROUP)
    if expert < 0:
        return
    row = first + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < tl.load(offsets + expert + 1)
    a_row = row.to(tl.int64)[:, None] * inner
    matrix = expert.to(tl.int64) * width * inner
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32) if SWAP else tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    w_live = (n < width)[:, None]
    at = n.to(tl.int64)[:, None] * w_row
    acc = multiply(acc, a + a_row, w + matrix + at, live[:, None], w_live, inner, w_inner, EVEN, SWAP, BLOCK_K)
    if a2 is not None:
        acc = multiply(acc, a2 + a_row, w2 + matrix + at, live[:, None], w_live, inner, w_inner, EVEN, SWAP, BLOCK_K)
    if SWAP:
        acc = tl.trans(acc)
    if bias is not None:
        acc += tl.load(bias + expert.to(tl.int64) * width + n, mask=n < width, other=0.0).to(tl.float32)[None, :]
    to = row
    if order is not None:
        to = tl.load(order + row, mask=live, other=0)
    if scale is not None:
        acc *= tl.load(scale + to, mask=live, other=0.0).to(tl.float32)[:, None]
    place = out + to.to(tl.int64)[:, None] * width + n[None, :]
    tl.store(place, narrowed(acc, out.dtype.element_ty), mask=live[:, None] & (n < width)[None, :])


@triton.jit
def grouped_weight_gradient(
    p, q, out, order, offsets, high, wide,
    CHOICES: tl.constexpr, P_GATHERED: tl.constexpr, Q_GATHERED: tl.constexpr, GROUP: tl.constexpr,
    BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One program computes BLOCK_I × BLOCK_J elements of out [E, high, wide]: Σ over an expert's rows of p[r] ⊗ q[r].

    P_GATHERED or Q_GATHERED: that operand has one row per token. Its row for r is the row of token order[r] // CHOICES.
    CHOICES is a constant, because every row of the loop is divided by it.
    """
    rows_of_tiles, columns_of_tiles = tl.cdiv(high, BLOCK_I), tl.cdiv(wide, BLOCK_J)
    tiles_per_expert = rows_of_tiles * columns_of_tiles
    expert = tl.program_id(0) // tiles_per_expert
    program = tl.program_id(0) % tiles_per_expert
    band = columns_of_tiles * GROUP
    top = program // band * GROUP
    height = tl.minimum(rows_of_tiles - top, GROUP)
    i = (top + program % band % height) * BLOCK_I + tl.arange(0, BLOCK_I)
    j = program % band // height * BLOCK_J + tl.arange(0, BLOCK_J)
    end = tl.load(offsets + expert + 1)
    acc = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    for start in range(tl.load(offsets + expert), end, BLOCK_K):
        row = start + tl.arange(0, BLOCK_K)
        live = row < end
        p_row, q_row = row, row
        if P_GATHERED or Q_GATHERED:
            token = tl.load(order + row, mask=live, other=0) // CHOICES
            if P_GATHERED:
                p_row = token
            if Q_GATHERED:
                q_row = token
        p_at = p + p_row.to(tl.int64)[:, None] * high + i[None, :]
        q_at = q + q_row.to(tl.int64)[:, None] * wide + j[None, :]
        left = tl.load(p_at, mask=live[:, None] & (i < high)[None, :], other=0.0)
        right = tl.load(q_at, mask=live[:, None] & (j < wide)[None, :], other=0.0)
        acc = dot(tl.trans(left), right, acc)
    place = out + (expert.to(tl.int64) * high + i.to(tl.int64)[:, None]) * wide + j[None, :]
    tl.store(place, narrowed(acc, out.dtype.element_ty), mask=(i < high)[:, None] & (j < wide)[None, :])


# == Configurations and launcher ==


def product_configurations(tile: int, itemsize: int, arch: int) -> list[Config]:
    """Return the candidate configurations. An iteration loads 128 B of the inner dimension per row. This is one line of
    shared memory. Eight threads load the line with 16 bytes each."""
    k = 128 // itemsize
    if tile >= 128:
        shape: dict[str, int] = {"BLOCK_M": 128, "BLOCK_K": k, "SWAP": 0, "GROUP": 8, "num_warps": 8}
        half = Config(
            **shape, BLOCK_N=128, num_stages=3, note="96 KB: two blocks per SM, one multiplies while the other stores"
        )
        if arch < 90:  # mma.sync needs registers for its operands: 256 columns would spill
            return [half]
        note = "two warpgroups of 64 × 256: 128 sums per thread, 85 FLOPs per byte of shared memory; 48 KB per stage"
        return [Config(**shape, BLOCK_N=256, num_stages=4, note=note), half]
    if tile == 64:
        shape = {"BLOCK_M": 64, "BLOCK_K": k, "SWAP": 0, "GROUP": 4, "num_warps": 4, "num_stages": 4}
        note = "one warpgroup of 64 × 128, 24 KB per stage: two blocks per SM"
        return [Config(**shape, BLOCK_N=128 if arch >= 90 else 64, note=note)]
    shape = {"BLOCK_M": tile, "BLOCK_K": 2 * k, "SWAP": 1, "GROUP": 4, "num_warps": 4}
    note = "16 KB of weights per stage in lines of 256 B, 3 in flight, two blocks per SM: 96 KB in flight"
    few = Config(**shape, BLOCK_N=64, num_stages=4, note=note)
    if tile > 16:  # twice the columns would leave room for one block only
        return [few]
    return [few, Config(**shape, BLOCK_N=128, num_stages=3, note="32 KB per stage, 2 in flight, two blocks: 128 KB")]


def gradient_configurations(itemsize: int, arch: int, gathered: bool) -> list[Config]:
    """Return the candidate configurations for the weight gradient. The product sums over the rows of both operands. In
    memory, the operands are contiguous along their columns."""
    shape = {"BLOCK_I": 128, "BLOCK_K": 128 // itemsize, "GROUP": 8}
    extra = 1 if gathered else 0
    wide = (
        "128 sums per thread, 48 KB per stage; gathered rows take one more stage, which loads their indices in advance"
    )
    note = "64 sums per thread: two blocks per SM, and more tiles of small matrices"
    half = Config(**shape, BLOCK_J=128, num_warps=8, num_stages=3 + extra, note=note)
    if arch < 90:
        return [half]
    return [Config(**shape, BLOCK_J=256, num_warps=8, num_stages=4 + extra, note=wide), half]


def product(
    a: Tensor,
    w: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    tile: int,
    *,
    transposed: bool = False,
    second: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
    order: Tensor | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """Return [R, N]: the product of a [R, K] and w [E, N, K] (w [E, K, N] if `transposed`), plus the product of the
    `second` pair of tensors.

    With `order`, row r of the product is written to row order[r] of the result. `scale` is in the order of the result's
    rows. All tensors are contiguous.
    """
    rows, inner = a.shape
    width = w.shape[2] if transposed else w.shape[1]
    out = empty(rows, width, like=a)
    config = choose("grouped_product", product_configurations(tile, a.element_size(), architecture(a.device)))
    limit = tiles.shape[1]
    a2, w2 = second or (None, None)
    launch(
        grouped_product,
        (limit * triton.cdiv(width, config["BLOCK_N"]),),
        config,
        *(a, w, a2, w2, bias, scale, out, order, offsets, tiles, limit, width, inner),
        *((1, width) if transposed else (inner, 1)),
        EVEN=inner % config["BLOCK_K"] == 0,
    )
    return out


def weight_gradient(
    p: Tensor, q: Tensor, offsets: Tensor, order: Tensor | None, choices: int, *, gathered: str = ""
) -> Tensor:
    """Return Σ p[r] ⊗ q[r] over the rows of each expert, [E, I, J], for p [R, I] and q [R, J].

    `gathered` names the operand, "p" or "q", that has one row per token."""
    experts, high, wide = len(offsets) - 1, p.shape[1], q.shape[1]
    out = empty(experts, high, wide, like=p)
    config = choose(
        "grouped_weight_gradient", gradient_configurations(p.element_size(), architecture(p.device), gathered != "")
    )
    grid = (experts * triton.cdiv(high, config["BLOCK_I"]) * triton.cdiv(wide, config["BLOCK_J"]),)
    constants = {"CHOICES": choices, "P_GATHERED": gathered == "p", "Q_GATHERED": gathered == "q"}
    launch(grouped_weight_gradient, grid, config, p, q, out, order, offsets, high, wide, **constants)
    return out


# == Torch op ==


@torch.library.custom_op("llmbench::grouped_matmul", mutates_args=())
def _grouped_matmul(x: Tensor, weight: Tensor, offsets: Tensor, tiles: Tensor, tile: int) -> Tensor:
    return product(x.contiguous(), weight.contiguous(), offsets.contiguous(), tiles, tile)


@_grouped_matmul.register_fake
def _(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@torch.library.custom_op("llmbench::grouped_matmul_backward", mutates_args=())
def _grouped_matmul_backward(
    dout: Tensor, x: Tensor, weight: Tensor, offsets: Tensor, tiles: Tensor, tile: int
) -> tuple[Tensor, Tensor]:
    dout, offsets = dout.contiguous(), offsets.contiguous()
    dx = product(dout, weight.contiguous(), offsets, tiles, tile, transposed=True)
    return dx, weight_gradient(dout, x.contiguous(), offsets, None, 1)


@_grouped_matmul_backward.register_fake
def _(dout: Any, x: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


@register_flop_formula(torch.ops.llmbench.grouped_matmul)
def _flops(x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x[0] * weight[1] * weight[2]


@register_flop_formula(torch.ops.llmbench.grouped_matmul_backward)
def _backward_flops(dout: Any, x: torch.Size, weight: torch.Size, *_: Any, **__: Any) -> int:
    return 4 * x[0] * weight[1] * weight[2]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.tile = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    return *_grouped_matmul_backward(dout, *ctx.saved_tensors, ctx.tile), None, None, None


_grouped_matmul.register_autograd(_backward, setup_context=_save)


# == Public op ==


def grouped_matmul(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Return y [R, N] from x [R, K] sorted by expert, weight [E, N, K] and offsets [E + 1] in int32.

    `offsets` must rise from 0 to R. This is not checked, because the host would have to wait for the GPU. Raises
    ValueError for shapes and dtypes that do not match.
    """
    if x.dim() != 2 or weight.dim() != 3 or x.shape[1] != weight.shape[2]:
        raise ValueError(f"x {tuple(x.shape)} and weight {tuple(weight.shape)}: they must be [R, K] and [E, N, K]")
    if max(weight.shape[1:]) > MAX_WIDTH:
        raise ValueError(f"weight {tuple(weight.shape)}: a matrix has at most {MAX_WIDTH:,} rows and columns")
    if x.dtype != weight.dtype or x.dtype not in KERNEL.dtypes:
        raise ValueError(f"x {x.dtype} and weight {weight.dtype}: both must have one dtype: fp16, bf16 or fp32")
    if offsets.shape != (weight.shape[0] + 1,) or offsets.dtype != torch.int32:
        raise ValueError(f"offsets {tuple(offsets.shape)} {offsets.dtype} must be ({weight.shape[0] + 1},) in int32")
    tile = rows_per_tile(x.shape[0], weight.shape[0])
    return _grouped_matmul(x, weight, offsets, tiles_from_offsets(offsets, x.shape[0], tile), tile)


# == Reference ==


def reference(x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    """Compute the grouped product in plain torch, one expert after another."""
    ends = offsets.tolist()
    return torch.cat(
        [x[start:end] @ matrix.T for start, end, matrix in zip(ends[:-1], ends[1:], weight.unbind(), strict=True)]
    )


# == Cases and cost ==


class Case(NamedTuple):
    """Sizes of a grouped product. `empty` is the number of experts without rows."""

    rows: int
    experts: int
    inner: int
    width: int
    empty: int = 0


def inputs(case: Case, random: Random) -> Inputs:
    """Return rows with random experts. Experts without rows come first; if there are several, one of them comes
    last."""
    expert = random.integers(case.empty, case.experts, case.rows).cpu()
    counts = torch.bincount(expert, minlength=case.experts)
    if case.empty > 1:
        counts = counts.roll(-1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).int().to(random.device)
    return {
        "x": random.normal(case.rows, case.inner),
        "weight": random.normal(case.experts, case.width, case.inner, scale=case.inner**-0.5),
        "offsets": offsets,
    }


def cost(case: Case, dtype: torch.dtype) -> Cost:
    """Return 2·R·N·K FLOPs for the forward pass, and twice as many for the backward pass. The bytes include the rows
    that are read and written, and the weights of the experts that can have rows."""
    flops = 2 * case.rows * case.inner * case.width
    visited = min(case.experts - case.empty, case.rows)
    rows, matrices = case.rows * (case.inner + case.width), case.inner * case.width
    forward = rows + visited * matrices
    backward = 2 * rows + (visited + case.experts) * matrices
    return Cost(flops, forward * dtype.itemsize, 2 * flops, backward * dtype.itemsize)


def random_case(draw: Draw) -> Case:
    """Return a random case."""
    experts = draw.size(12)
    return Case(
        rows=draw.size(300, least=0),
        experts=experts,
        inner=draw.size(160),
        width=draw.size(280),
        empty=draw.randrange(experts) if draw.chance() else 0,
    )


KERNEL = Kernel(
    name="grouped_matmul",
    summary="product of rows sorted by expert, each expert with its own matrix",
    run=grouped_matmul,
    reference=reference,
    inputs=inputs,
    cost=cost,
    cases=[
        Case(21, 3, 37, 45),
        Case(150, 3, 64, 136, empty=1),
        Case(5, 9, 40, 33, empty=2),
        Case(80, 4, 30, 129),
    ],
    random_case=random_case,
    shapes=[Case(65536, 256, 7168, 2048), Case(1024, 128, 2048, 768)],  # DeepSeek-V3 training; Qwen3-30B-A3B decoding
    differentiable=("x", "weight"),
)
