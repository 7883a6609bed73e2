"""What attention's forward and backward kernels share: who sees whom, how scores are made, how tiles are read.

Query i of S stands at position i + T - S, so that the last query stands at the last key. It sees the keys from
`before` in front of its position to `after` behind it:

    causal                  before = ∞            after = 0
    causal, window w        before = w - 1        after = 0
    full, window w          before = after = w // 2
    full                    before = after = ∞

Turned round, a key is seen by the queries from `after` in front of it to `before` behind it, with the shift negated:
backward walks the queries of a key with the same bounds.

S query length, T key length, H width of queries and keys, V width of values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = [
    "LOG2E",
    "Problem",
    "Reach",
    "aligned",
    "allowed",
    "capped",
    "heads_together",
    "one_tile",
    "padded",
    "phases",
    "seen_pairs",
    "split_width",
    "tile_of",
    "tile_of_head",
    "tiles_from",
    "tiles_of_heads",
]

LOG2E = 1.4426950408889634
FAR = 1 << 30  # further than any sequence is long, and not so far that positions overflow


class Reach(NamedTuple):
    """How many keys a query sees before and after its own position; None for all."""

    before: int | None
    after: int | None

    @classmethod
    def of(cls, causal: bool, window: int | None) -> Reach:
        """`window` counts the keys seen, the query's own included; half of it to either side where not causal."""
        if causal:
            return cls(None if window is None else window - 1, 0)
        return cls(None, None) if window is None else cls(window // 2, window // 2)

    def as_arguments(self) -> tuple[int, int]:
        """`before` and `after` as a kernel takes them."""
        return min(FAR, FAR if self.before is None else self.before), min(
            FAR, FAR if self.after is None else self.after
        )


def seen_pairs(queries: int, keys: int, reach: Reach) -> int:
    """Pairs of one head and sequence that are scored, exactly."""

    def sum_clipped(first: int, last: int) -> int:
        """Σ min(max(p, 0), keys) for p from first to last."""

        def upto(p: int) -> int:
            if p <= 0:
                return 0
            rising = min(p, keys)
            return rising * (rising + 1) // 2 + (p - rising) * keys

        return upto(last) - upto(first - 1)

    first, last = keys - queries, keys - 1  # positions of the first and the last query
    ends = queries * keys if reach.after is None else sum_clipped(first + reach.after + 1, last + reach.after + 1)
    starts = 0 if reach.before is None else sum_clipped(first - reach.before, last - reach.before)
    return ends - starts


class Problem(NamedTuple):
    """What is asked of the kernels besides q, k, v: the greatest lengths, `packed` sequences by their `starts`, and the
    options of `attention`."""

    batch: int
    queries: int
    keys: int
    reach: Reach
    scale: float
    soft_cap: float | None
    sinks: Tensor | None
    slopes: Tensor | None
    query_starts: Tensor | None
    key_starts: Tensor | None

    @property
    def packed(self) -> bool:
        return self.query_starts is not None

    @property
    def plain(self) -> bool:
        """Whether a score is a scaled product, masked at most causally: no window, cap or slopes."""
        return self.reach.before is None and self.soft_cap is None and self.slopes is None

    def strides(self, *tensors: Tensor) -> list[int]:
        """Strides of sequences, heads and rows of each: [B, N, S, H], or [tokens, N, H] where packed."""
        if self.packed:
            return [stride for x in tensors for stride in (0, x.stride(1), x.stride(0))]
        return [x.stride(dim) for x in tensors for dim in range(3)]

    def row_strides(self, x: Tensor) -> tuple[int, int]:
        """Strides of sequences and heads of numbers a row: [B, N, S], or [N, tokens] where packed."""
        return (0, x.stride(0)) if self.packed else (x.stride(0), x.stride(1))

    def factors(self) -> tuple[float, float]:
        """The factors before and after the cap that make scores in units of log 2."""
        if self.soft_cap is None:
            return self.scale * LOG2E, 0.0
        return self.scale / self.soft_cap, self.soft_cap * LOG2E

    def constants(self, width: int, v_width: int) -> dict[str, Any]:
        """What all kernels are compiled for."""
        main, rest = split_width(width)
        return {
            "BEFORE": self.reach.before is not None,
            "AFTER": self.reach.after is not None,
            "CAPPED": self.soft_cap is not None,
            "SLOPED": self.slopes is not None,
            "PACKED": self.packed,
            "WIDTH": width,
            "MAIN": main,
            "REST": rest,
            "VALUES": v_width,
            "PADDED_VALUES": padded(v_width),
        }


def padded(width: int) -> int:
    """A width as a power of two, as products take it."""
    return max(16, int(triton.next_power_of_2(width)))


def split_width(width: int) -> tuple[int, int]:
    """A width as two powers of two, so that 192 is 128 + 64 and not 256; the second is 0 where one is as good."""
    whole = padded(width)
    main = whole // 2
    rest = padded(width - main)
    return (main, rest) if main >= 64 and main + rest < whole else (whole, 0)


def aligned(x: Tensor) -> Tensor:
    """x as the kernels read it: unit last stride, other strides and address multiples of 16 bytes; a copy where not."""
    whole = 16 // x.element_size()
    if x.stride(-1) == 1 and 0 not in x.stride() and not any(n % whole for n in (*x.stride()[:-1], x.storage_offset())):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def heads_together(bytes_a_head: int, heads: int) -> int:
    """How many heads are worked on at a time, so that what their programs share stays in the second-level cache."""
    return max(1, min(heads, (32 << 20) // max(1, bytes_a_head)))


@triton.jit
def one_tile(tiles, heads, together, REVERSED: tl.constexpr):
    """This program's tile and head: heads `together` at a time, and of these first the tiles with the most work, which
    are the last where REVERSED."""
    program = tl.program_id(0)
    first = program // (together * tiles) * together
    within = program - first * tiles
    size = tl.minimum(together, heads - first)
    tile = within // size
    head = first + within - tile * size
    if REVERSED:
        tile = tiles - 1 - tile
    return tile, head


@triton.jit
def phases(first, last, shift, before, after, length, BLOCK: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr):
    """The columns that rows `first` to `last` see, as lo, a, b, hi: tiles in [lo, a) and [b, hi) need the mask, tiles
    in [a, b) are seen whole by every row. What is outside is skipped."""
    lo = first * 0
    whole_lo = lo
    hi = lo + length
    whole_hi = hi
    if BEFORE:
        lo = tl.maximum(first + shift - before, 0) // BLOCK * BLOCK
        whole_lo = (tl.maximum(last + shift - before, 0) + BLOCK - 1) // BLOCK * BLOCK
    if AFTER:
        hi = tl.maximum(tl.minimum(hi, last + shift + after + 1), 0)
        whole_hi = tl.maximum(tl.minimum(whole_hi, first + shift + after + 1), 0)
    a = tl.minimum(whole_lo, hi)
    b = tl.maximum(a, whole_hi // BLOCK * BLOCK)
    return lo, a, b, hi


@triton.jit
def allowed(keys, positions, before, after, BEFORE: tl.constexpr, AFTER: tl.constexpr):
    """Whether keys are seen from positions, one broadcast against the other. Bounds are vectors: differences of all
    pairs would not change from tile to tile but for a number, and the compiler would keep them in registers."""
    seen = keys == keys
    if BEFORE:
        seen = seen & (keys >= positions - before)
    if AFTER:
        seen = seen & (keys <= positions + after)
    return seen


@triton.jit
def capped(x, EXACT: tl.constexpr):
    """tanh(x). Near 0 the quotient would lose its digits: there a series keeps them, where fp32 is asked for."""
    e = tl.exp2(tl.abs(x) * -2.8853900817779268)
    value = (1.0 - e) / (1.0 + e)
    if EXACT:
        y = x * x
        series = 1.0 + y * (-1 / 3 + y * (2 / 15 + y * (-17 / 315 + y * (62 / 2835 - y * (1382 / 155925)))))
        value = tl.where(y < 0.09, tl.abs(x) * series, value)
    return tl.where(x < 0.0, -value, value)


@triton.jit
def tiles_from(base, rows, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr, TMA: tl.constexpr):
    """A matrix [rows, WIDTH] to read tiles [BLOCK, PADDED] from: a descriptor, or its address."""
    if TMA:
        return tl.make_tensor_descriptor(base, [rows, WIDTH], [tl.cast(stride, tl.int64), 1], [BLOCK, PADDED])
    else:
        return base


@triton.jit
def tile_of(
    matrix,
    row,
    rows,
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
    TMA: tl.constexpr,
    INSIDE: tl.constexpr,
):
    """The tile whose first row is `row`; zeros outside the matrix. INSIDE: its rows are known to lie within."""
    if TMA:
        return matrix.load([row, 0])
    else:
        r = tl.arange(0, BLOCK)
        c = tl.arange(0, PADDED)
        place = matrix + row * tl.cast(stride, tl.int64) + (r[:, None] * stride + c[None, :])
        if INSIDE and WIDTH == PADDED:
            return tl.load(place)
        elif INSIDE:
            return tl.load(place, mask=c[None, :] < WIDTH, other=0.0)
        else:
            return tl.load(place, mask=(row + r[:, None] < rows) & (c[None, :] < WIDTH), other=0.0)


@triton.jit
def tiles_of_heads(
    base,
    heads,
    rows,
    head_stride,
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
    TMA: tl.constexpr,
):
    """The same for matrices of several heads, by one descriptor."""
    if TMA:
        return tl.make_tensor_descriptor(
            base,
            [heads, rows, WIDTH],
            [tl.cast(head_stride, tl.int64), tl.cast(stride, tl.int64), 1],
            [1, BLOCK, PADDED],
        )
    else:
        return base


@triton.jit
def tile_of_head(
    matrices,
    head,
    row,
    rows,
    head_stride,
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
    TMA: tl.constexpr,
):
    """The tile of one head; zeros outside."""
    if TMA:
        return matrices.load([head, row, 0]).reshape(BLOCK, PADDED)
    else:
        matrix = matrices + head * tl.cast(head_stride, tl.int64)
        return tile_of(matrix, row, rows, stride, WIDTH, BLOCK, PADDED, TMA, False)
