"""The kernels of a mixture of experts that are not plain grouped products (`moe` says how they belong together).

Shapes: t tokens, k choices of each, R = t·k pairs, D hidden, F intermediate, E experts. Rows of [R, …] are sorted by
expert; `order` [R] says which pair = token · k + slot stands where (`grouping`).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmbench.kernels.glu import ACTIVATIONS, LIMIT, OAI, gate_and_slope
from llmbench.kernels.grouped_matmul import multiply, tile_at
from llmbench.kernels.launching import Config, architecture, choose, empty, launch
from llmbench.kernels.products import dot, narrowed

__all__ = ["bias_gradient", "combined", "gated", "gated_gradient", "pair_gradient"]


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
    """As `grouped_matmul.multiply`, with two matrices for the same rows."""
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
    """The left and the right columns of [M, N]. The end of a tile is done by halves where a whole one would spill."""
    M: tl.constexpr = x.shape[0]
    N: tl.constexpr = x.shape[1]
    return tl.split(tl.permute(tl.reshape(x, (M, 2, N // 2)), (0, 2, 1)))


@triton.jit
def _store_gated(
    a,
    b,
    first_bias,
    second_bias,
    second,
    h,
    kept,
    kept2,
    bias,
    corner,
    place,
    n,
    live,
    width,
    ACT: tl.constexpr,
):
    """Biases, activation and stores of columns n of the two products; `b` counts only where there is `second`."""
    here = live[:, None] & (n < width)[None, :]
    place = place + n[None, :]
    if first_bias is not None:
        a += tl.load(first_bias + bias + n, mask=n < width, other=0.0).to(tl.float32)[None, :]
    if kept is not None:
        tl.store(kept + corner + place, narrowed(a, h.dtype.element_ty), mask=here)
    value, _slope = gate_and_slope(a, ACT)
    if second is not None:
        if second_bias is not None:
            b += tl.load(second_bias + bias + n, mask=n < width, other=0.0).to(tl.float32)[None, :]
        if kept2 is not None:
            tl.store(kept2 + corner + place, narrowed(b, h.dtype.element_ty), mask=here)
        if ACT == OAI:
            b = tl.minimum(tl.maximum(b, -LIMIT), LIMIT) + 1.0
        value = value * b
    tl.store(h + corner + place, narrowed(value, h.dtype.element_ty), mask=here)


@triton.jit
def gated_forward(
    x,
    first,
    second,
    first_bias,
    second_bias,
    h,
    kept,
    kept2,
    order,
    offsets,
    tiles,
    limit,
    width,
    inner,
    choices,
    ACT: tl.constexpr,
    EVEN: tl.constexpr,
    SWAP: tl.constexpr,
    HALVES: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """h [R, F] = act(x·firstᵀ) ∘ x·secondᵀ, or without `second` act(x·firstᵀ); the products themselves are kept where
    there is room for them. x [t, D] is gathered row by row."""
    expert, top, column = tile_at(tiles, limit, tl.cdiv(width, BLOCK_N), GROUP)
    if expert < 0:
        return
    row = top + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < tl.load(offsets + expert + 1)
    token = tl.load(order + row, mask=live, other=0) // choices
    rows = x + token.to(tl.int64)[:, None] * inner
    at = expert.to(tl.int64) * width * inner + (n * inner)[:, None]
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
    corner = top.to(tl.int64) * width  # what is left to add fits in 32 bits
    place = (tl.arange(0, BLOCK_M) * width)[:, None]
    bias = expert * width
    if HALVES:
        n = column * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        a, right = _halves(a)
        b, right2 = _halves(b)
        _store_gated(a, b, first_bias, second_bias, second, h, kept, kept2, bias, corner, place, n, live, width, ACT)
        a, b = right, right2
        n += BLOCK_N // 2
    _store_gated(a, b, first_bias, second_bias, second, h, kept, kept2, bias, corner, place, n, live, width, ACT)


@triton.jit
def _gated_end(dh, weight, kept, kept2, da, db, scaled, corner, place, n, live, width, ACT: tl.constexpr):
    """da, db and w·h of columns n from dh, and the sums of dh·h over these columns."""
    here = live[:, None] & (n < width)[None, :]
    place = place + n[None, :]
    value, slope = gate_and_slope(tl.load(kept + corner + place, mask=here, other=0.0).to(tl.float32), ACT)
    h = value
    dy = dh * weight[:, None]
    if kept2 is not None:
        b = tl.load(kept2 + corner + place, mask=here, other=0.0).to(tl.float32)
        dvalue = dy * value
        if ACT == OAI:
            dvalue = tl.where((b >= -LIMIT) & (b <= LIMIT), dvalue, 0.0)
            b = tl.minimum(tl.maximum(b, -LIMIT), LIMIT) + 1.0
        tl.store(db + corner + place, narrowed(dvalue, db.dtype.element_ty), mask=here)
        h = value * b
        slope = slope * b
    tl.store(da + corner + place, narrowed(dy * slope, da.dtype.element_ty), mask=here)
    tl.store(scaled + corner + place, narrowed(h * weight[:, None], scaled.dtype.element_ty), mask=here)
    return tl.sum(dh * h, axis=1)


@triton.jit
def gated_backward(
    dout,
    down,
    kept,
    kept2,
    weights,
    da,
    db,
    scaled,
    sums,
    order,
    offsets,
    tiles,
    limit,
    width,
    inner,
    choices,
    pairs,
    ACT: tl.constexpr,
    EVEN: tl.constexpr,
    SWAP: tl.constexpr,
    HALVES: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """dh = the pairs' rows of dout times down, and at once da, db, w·h (`scaled`) and the sum of dh·h over these
    columns, one row of `sums` [⌈F / BLOCK_N⌉, R] in the order of pairs."""
    expert, top, column = tile_at(tiles, limit, tl.cdiv(width, BLOCK_N), GROUP)
    if expert < 0:
        return
    row = top + tl.arange(0, BLOCK_M)
    n = column * BLOCK_N + tl.arange(0, BLOCK_N)
    live = row < tl.load(offsets + expert + 1)
    pair = tl.load(order + row, mask=live, other=0)
    rows = dout + (pair // choices).to(tl.int64)[:, None] * inner
    at = down + expert.to(tl.int64) * width * inner + n[:, None]
    dh = tl.zeros([BLOCK_N, BLOCK_M], tl.float32) if SWAP else tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    dh = multiply(dh, rows, at, live[:, None], (n < width)[:, None], inner, width, EVEN, SWAP, BLOCK_K)
    if SWAP:
        dh = tl.trans(dh)
    weight = tl.load(weights + pair, mask=live, other=0.0).to(tl.float32)
    corner = top.to(tl.int64) * width  # what is left to add fits in 32 bits
    place = (tl.arange(0, BLOCK_M) * width)[:, None]
    if HALVES:
        n = column * BLOCK_N + tl.arange(0, BLOCK_N // 2)
        left, right = _halves(dh)
        part = _gated_end(left, weight, kept, kept2, da, db, scaled, corner, place, n, live, width, ACT)
        n += BLOCK_N // 2
        part += _gated_end(right, weight, kept, kept2, da, db, scaled, corner, place, n, live, width, ACT)
    else:
        part = _gated_end(dh, weight, kept, kept2, da, db, scaled, corner, place, n, live, width, ACT)
    tl.store(sums + column.to(tl.int64) * pairs + pair, part, mask=live)


@triton.jit
def combine(rows, instead, weights, chosen, out, hidden, experts, K: tl.constexpr, BLOCK: tl.constexpr):
    """BLOCK columns of one token: the sum of its K rows of `rows` [t·k, D], in which an expert that computes nothing
    has none: there it is its weight times the token's row of `instead` [t, D]."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < hidden
    acc = tl.zeros([BLOCK], tl.float32)
    for slot in tl.static_range(K):
        pair = token * K + slot
        made = tl.where(tl.load(chosen + pair) < experts, hidden, 0)  # one of the two loads reads nothing
        acc += tl.load(rows + pair * hidden + column, mask=column < made, other=0.0).to(tl.float32)
        own = tl.load(instead + token * hidden + column, mask=column < hidden - made, other=0.0).to(tl.float32)
        acc += own * tl.load(weights + pair).to(tl.float32)
    tl.store(out + token * hidden + column, narrowed(acc, out.dtype.element_ty), mask=inside)


@triton.jit
def pair_weight_gradient(
    sums,
    dout,
    x,
    chosen,
    down_bias,
    dweights,
    pairs,
    columns,
    hidden,
    experts,
    choices,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """dw of PAIRS pairs: the sums of dh·h over all columns, + dout·down_bias; of experts that compute nothing dout·x.
    Only the latter two read rows of D."""
    pair = tl.program_id(0) * PAIRS + tl.arange(0, PAIRS)
    live = pair < pairs
    expert = tl.load(chosen + pair, mask=live, other=0).to(tl.int64)
    real = expert < experts
    total = tl.zeros([PAIRS], tl.float32)
    for i in range(columns):
        total += tl.load(sums + pair + tl.cast(i, tl.int64) * pairs, mask=live & real, other=0.0)
    lacking = live & (real == 0)
    needed = tl.max(lacking.to(tl.int32), axis=0)
    if down_bias is not None:
        needed = 1
    token = (pair // choices).to(tl.int64)[:, None] * hidden
    for start in range(0, needed * hidden, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        inside = column < hidden
        with_row = tl.load(x + token + column, mask=lacking[:, None] & inside, other=0.0).to(tl.float32)
        reads = lacking
        if down_bias is not None:
            at = down_bias + expert[:, None] * hidden + column
            with_row += tl.load(at, mask=(live & real)[:, None] & inside, other=0.0).to(tl.float32)
            reads = live
        dy = tl.load(dout + token + column, mask=reads[:, None] & inside, other=0.0).to(tl.float32)
        total += tl.sum(dy * with_row, axis=1)
    tl.store(dweights + pair, narrowed(total, dweights.dtype.element_ty), mask=live)


@triton.jit
def sum_rows(
    p,
    order,
    weights,
    offsets,
    out,
    width,
    choices,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out [E, width]: BLOCK columns of the sum of an expert's rows; with `order`, of its tokens' rows times weights."""
    expert = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (column < width)[None, :]
    end = tl.load(offsets + expert + 1)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(tl.load(offsets + expert), end, ROWS):
        row = start + tl.arange(0, ROWS)
        live = row < end
        factor = live.to(tl.float32)
        if order is not None:
            pair = tl.load(order + row, mask=live, other=0)
            factor = tl.load(weights + pair, mask=live, other=0.0).to(tl.float32)
            row = pair // choices
        at = p + row.to(tl.int64)[:, None] * width + column[None, :]
        values = tl.load(at, mask=live[:, None] & inside, other=0.0).to(tl.float32)
        total += tl.sum(values * factor[:, None], axis=0)
    tl.store(out + expert.to(tl.int64) * width + column, narrowed(total, out.dtype.element_ty), mask=column < width)


def gated_configurations(tile: int, itemsize: int, arch: int, matrices: int) -> list[Config]:
    """As `grouped_matmul.product_configurations`; two matrices of BLOCK_N columns are one of twice as many."""
    k = 128 // itemsize
    if tile >= 128:
        shape: dict[str, int] = {"BLOCK_M": 128, "BLOCK_K": k, "SWAP": 0, "GROUP": 8, "num_warps": 8}
        narrow = Config(
            **shape, HALVES=0, BLOCK_N=128 // matrices, num_stages=3, note="64 sums a thread, 96 KB: two blocks an SM"
        )
        if arch < 90:
            return [narrow]
        note = "a warpgroup holds 64 rows of both products, 128 sums a thread; rows of x are loaded once for both"
        return [Config(**shape, HALVES=1, BLOCK_N=256 // matrices, num_stages=4, note=note), narrow]
    if tile == 64:
        note = "one warpgroup, 64 sums a thread, 24 KB a stage: two blocks an SM"
        shape = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": k, "SWAP": 0, "HALVES": 0, "GROUP": 4}
        return [Config(**shape, num_warps=4, num_stages=4, note=note)]
    shape = {"BLOCK_M": tile, "BLOCK_N": 64, "SWAP": 1, "HALVES": 0, "GROUP": 4, "num_warps": 4}
    deep = Config(**shape, BLOCK_K=k, num_stages=5, note="16 KB of weights a stage, 4 in flight, two blocks an SM")
    if tile > 16:  # longer steps of more rows would leave room for one block only
        return [deep]
    note = "32 KB of weights a stage in lines of 256 B, 2 in flight, two blocks an SM: 128 KB on their way"
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
    """h [R, F], and if `keep` the two products [R, F], else empty tensors in their places (a launcher).

    `inner_matrices`: the first and the second, and their biases; with no second, h = act(x·firstᵀ)."""
    first, second, first_bias, second_bias = inner_matrices
    rows, (_, width, inner) = len(order), first.shape
    h = empty(rows, width, like=x)
    kept = empty(rows, width, like=x) if keep else None
    kept2 = empty(rows, width, like=x) if keep and second is not None else None
    matrices = 1 if second is None else 2
    config = choose("gated_forward", gated_configurations(tile, x.element_size(), architecture(x.device), matrices))
    limit = tiles.shape[1]
    launch(
        gated_forward,
        (limit * triton.cdiv(width, config["BLOCK_N"]),),
        config,
        *(x, first, second, first_bias, second_bias, h, kept, kept2),
        *(order, offsets, tiles, limit, width, inner, choices),
        ACT=ACTIVATIONS[activation],
        EVEN=inner % config["BLOCK_K"] == 0,
    )
    return h, x.new_empty(0) if kept is None else kept, x.new_empty(0) if kept2 is None else kept2


def gradient_configurations(tile: int, itemsize: int, arch: int) -> list[Config]:
    """The ends of this kernel are long (two tensors read, three written): narrower than the plain product."""
    k = 128 // itemsize
    if tile >= 128:
        shape: dict[str, int] = {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": k, "SWAP": 0, "HALVES": 1, "GROUP": 8}
        note = "64 sums a thread, and the end on 32 at a time; 32 KB a stage"
        deep = Config(**shape, num_warps=8, num_stages=4, note=note)
        pair = Config(**shape, num_warps=8, num_stages=3, note="96 KB, should the registers let two blocks in")
        return [deep if arch >= 90 else pair, pair]
    shape = {"BLOCK_M": tile, "BLOCK_N": 64, "HALVES": 0, "GROUP": 4, "num_warps": 4, "num_stages": 4}
    if tile == 64:
        return [Config(**shape, BLOCK_K=k, SWAP=0, note="one warpgroup, 32 sums a thread, 16 KB a stage: three blocks")]
    return [Config(**shape, BLOCK_K=2 * k, SWAP=1, note="16 KB of weights a stage, 3 in flight, two blocks an SM")]


def gated_gradient(
    dout: Tensor,
    down: Tensor,
    kept: Tensor,
    kept2: Tensor | None,
    weights: Tensor,
    order: Tensor,
    offsets: Tensor,
    tiles: Tensor,
    tile: int,
    choices: int,
    activation: str,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """da, db, w·h [R, F] and the parts of dw [columns of tiles, R] (a launcher)."""
    rows, (_, inner, width) = len(order), down.shape
    da, scaled = empty(rows, width, like=dout), empty(rows, width, like=dout)
    db = None if kept2 is None else empty(rows, width, like=dout)
    config = choose("gated_backward", gradient_configurations(tile, dout.element_size(), architecture(dout.device)))
    columns, limit = triton.cdiv(width, config["BLOCK_N"]), tiles.shape[1]
    sums = empty(columns, rows, like=dout, dtype=torch.float32)
    launch(
        gated_backward,
        (limit * columns,),
        config,
        *(dout, down, kept, kept2, weights, da, db, scaled, sums),
        *(order, offsets, tiles, limit, width, inner, choices, rows),
        ACT=ACTIVATIONS[activation],
        EVEN=inner % config["BLOCK_K"] == 0,
    )
    return da, db, scaled, sums


def combined(rows: Tensor, instead: Tensor, weights: Tensor, chosen: Tensor, experts: int) -> Tensor:
    """The sum of each token's rows [t·k, D] as [t, D] (a launcher)."""
    tokens, hidden = instead.shape
    out = empty(tokens, hidden, like=instead)
    block = max(128, min(1024, triton.next_power_of_2(hidden)))
    note = "8 elements a thread and row: a 16-byte load of each of the k rows in flight"
    config = Config(BLOCK=block, num_warps=max(1, block // 256), note=note)
    grid = tokens, triton.cdiv(hidden, block)
    launch(combine, grid, config, rows, instead, weights, chosen, out, hidden, experts, K=chosen.shape[1])
    return out


def pair_gradient(
    sums: Tensor, dout: Tensor, x: Tensor, weights: Tensor, chosen: Tensor, down_bias: Tensor | None, experts: int
) -> Tensor:
    """dw [t, k] (a launcher)."""
    (columns, pairs), choices, hidden = sums.shape, chosen.shape[1], x.shape[1]
    dweights = empty(*weights.shape, like=weights)
    config = Config(
        PAIRS=32, BLOCK=128, num_warps=4, note="32 pairs read a line of `sums`; rows of D 32 values a thread"
    )
    arguments = sums, dout, x, chosen, down_bias, dweights, pairs, columns, hidden, experts, choices
    launch(pair_weight_gradient, (triton.cdiv(pairs, 32),), config, *arguments)
    return dweights


def bias_gradient(
    p: Tensor, offsets: Tensor, order: Tensor | None = None, weights: Tensor | None = None, choices: int = 1
) -> Tensor:
    """Each expert's sum of its rows of p [R, N], or with `order` and `weights` of its tokens' rows of p [t, N]: [E, N]
    (a launcher)."""
    experts, width = len(offsets) - 1, p.shape[1]
    out = empty(experts, width, like=p)
    config = Config(
        ROWS=64, BLOCK=128, num_warps=4, num_stages=3, note="64 rows of 256 B a step, the next on their way"
    )
    grid = experts, triton.cdiv(width, 128)
    launch(sum_rows, grid, config, p, order, weights, offsets, out, width, choices)
    return out
