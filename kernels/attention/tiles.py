"""Functions that attention's forward and backward kernels share: mask bounds, score factors, tile loads.

Query i of S has position i + T - S, so the last query has the position of the last key. A query sees the keys from
`before` positions before its own position to `after` positions after it:

    causal                  before = ∞            after = 0
    causal, window w        before = w - 1        after = 0
    full, window w          before = after = w // 2
    full                    before = after = ∞

Conversely, the queries from `after` positions before a key to `before` positions after it see the key. The backward
pass uses these bounds to loop over the queries that see a key. There, the shift is S - T instead of T - S.

S query length, T key length, H width of queries and keys, V width of values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from llmbench.kernels.launching import Config, fits_descriptor
from llmbench.kernels.numeric import LOG2E

__all__ = [
    "DEVICE",
    "FAR",
    "HOST",
    "WIDEST_ROW",
    "Problem",
    "Reach",
    "aligned",
    "concurrent_heads",
    "group_tiles",
    "head_rows",
    "load_group_tile",
    "load_tile",
    "matrices",
    "matrix_tiles",
    "padded",
    "phases",
    "program_tile",
    "seen_pairs",
    "split_width",
    "visible",
]

FAR = 1 << 30  # greater than any length; the sum of a position and FAR fits in 32 bits
WIDEST_ROW = 1 << 24  # stride of rows in elements; the offsets within a tile of 128 rows then fit in 32 bits

DEVICE, HOST = tl.constexpr(1), tl.constexpr(2)
"""Values of TMA. With DEVICE, each program makes its descriptors. With HOST, the launcher makes them once, which saves
each program 200 to 700 instructions per warp and a wait for global memory. With 0, loads use addresses."""


class Reach(NamedTuple):
    """The number of keys that a query sees before its own position, and after it. None means all keys on that side."""

    before: int | None
    after: int | None

    @classmethod
    def from_mask(cls, causal: bool, window: int | None) -> Reach:
        """Return the reach of a mask. `window` is the number of visible keys, including the query's own; without
        `causal`, half of them are before the query and half after it."""
        if causal:
            return cls(None if window is None else window - 1, 0)
        return cls(None, None) if window is None else cls(window // 2, window // 2)

    def as_arguments(self) -> tuple[int, int]:
        """Return `before` and `after` as integers for the kernels. FAR stands for None."""
        before, after = (FAR if keys is None else min(FAR, keys) for keys in self)
        return before, after


def seen_pairs(queries: int, keys: int, reach: Reach) -> int:
    """Return the exact number of query-key pairs that one head scores in one sequence."""

    def sum_clipped(first: int, last: int) -> int:
        """Return Σ min(max(p, 0), keys) over the integers p from first to last."""

        def sum_to(p: int) -> int:
            if p <= 0:
                return 0
            rising = min(p, keys)
            return rising * (rising + 1) // 2 + (p - rising) * keys

        return sum_to(last) - sum_to(first - 1)

    first, last = keys - queries, keys - 1  # positions of the first and the last query
    ends = queries * keys if reach.after is None else sum_clipped(first + reach.after + 1, last + reach.after + 1)
    starts = 0 if reach.before is None else sum_clipped(first - reach.before, last - reach.before)
    return ends - starts


class Problem(NamedTuple):
    """The arguments of the kernels besides q, k and v: the greatest lengths, the options of `attention`, and the starts
    of packed sequences."""

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
        """Whether sequences are stored end to end, without a batch dimension."""
        return self.query_starts is not None

    @property
    def masked(self) -> bool:
        """Whether some keys are hidden from some queries: a causal mask or a window."""
        return self.reach != Reach(None, None)

    @property
    def plain(self) -> bool:
        """Whether the kernels only scale the scores and apply at most a causal mask. A problem with a window, a soft
        cap or slopes is not plain."""
        return self.reach.before is None and self.soft_cap is None and self.slopes is None

    def tma(self, widest: int) -> int:
        """Return the value of TMA: HOST if the launcher can make the descriptors, and if this saves time. `widest` is
        the greatest padded width.

        A descriptor of the launcher describes all sequences. It cannot describe a packed batch, where each sequence
        ends at another row, nor a tensor without elements. Heads of 64 and soft caps use DEVICE, because their loops
        are limited by the number of instructions, and with HOST, ptxas 12.8 adds up to 27 of them per iteration.
        """
        possible = not self.packed and 0 not in self[:3]
        return int((HOST if possible and widest > 64 and self.soft_cap is None else DEVICE).value)

    def strides(self, *tensors: Tensor) -> list[int]:
        """Return the strides of sequences, heads and rows, in elements, for each tensor [B, N, S, H], or [tokens, N, H]
        if packed."""
        if self.packed:
            return [stride for x in tensors for stride in (0, x.stride(1), x.stride(0))]
        return [x.stride(dim) for x in tensors for dim in range(3)]

    def row_strides(self, x: Tensor) -> tuple[int, int]:
        """Return the strides of sequences and heads, in elements, for a tensor [B, N, S], or [N, tokens] if packed."""
        return (0, x.stride(0)) if self.packed else (x.stride(0), x.stride(1))

    def factors(self) -> tuple[float, float]:
        """Return the factors that multiply a score before and after the soft cap. They contain the scale and log2(e),
        so that exponentials have base 2."""
        if self.soft_cap is None:
            return self.scale * LOG2E.value, 0.0
        return self.scale / self.soft_cap, self.soft_cap * LOG2E.value

    def constants(self, width: int, v_width: int) -> dict[str, Any]:
        """Return the constexpr arguments that all kernels share."""
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
    """Return the width rounded up to a power of two of at least 16, as matrix products require."""
    return max(16, int(triton.next_power_of_2(width)))


def split_width(width: int) -> tuple[int, int]:
    """Split a width into two powers of two, so that 192 is computed as 128 + 64 and not as 256. The second number is 0
    if a split saves nothing."""
    whole = padded(width)
    main = whole // 2
    rest = padded(width - main)
    return (main, rest) if main >= 64 and main + rest < whole else (whole, 0)


def aligned(x: Tensor) -> Tensor:
    """Return x if a TMA descriptor can describe it and its rows are less than WIDEST_ROW elements apart, else a
    contiguous copy."""
    rows_apart = x.stride(0 if x.dim() == 3 else 2)
    if fits_descriptor(x) and rows_apart < WIDEST_ROW:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def matrices(x: Tensor, columns: tuple[int, ...], rows: int, config: Config) -> Iterator[Any]:
    """Yield arguments of the kernels, one per number in `columns`: the first columns of x, then the next columns.

    An argument is a tensor, a descriptor of tiles of `rows` rows, or None for 0 columns.
    """
    first = 0
    for width in columns:
        part = x[..., first : first + width] if width < x.shape[-1] else x
        first += width
        if not width:
            yield None
        elif config["TMA"] == HOST.value:
            yield TensorDescriptor(part, list(part.shape), list(part.stride()), [1, 1, rows, width])
        else:
            yield part


def concurrent_heads(bytes_per_head: int, heads: int) -> int:
    """Return the number of heads that should run at the same time. All programs of a head read the same data. The data
    of the concurrent heads must fit in the L2 cache (32 MiB)."""
    return max(1, min(heads, (32 << 20) // max(1, bytes_per_head)))


@triton.jit
def program_tile(tiles, heads, concurrent, REVERSED: tl.constexpr):
    """Return this program's tile and head.

    `concurrent` heads run at the same time. The tiles with the most work start first. With REVERSED, these are the last
    tiles.
    """
    program = tl.program_id(0)
    first = program // (concurrent * tiles) * concurrent
    within = program - first * tiles
    size = tl.minimum(concurrent, heads - first)
    tile = within // size
    head = first + within - tile * size
    if REVERSED:
        tile = tiles - 1 - tile
    return tile, head


@triton.jit
def phases(first, last, shift, before, after, length, BLOCK: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr):
    """Return the column bounds lo, a, b, hi for the rows `first` to `last`.

    Tiles of columns in [lo, a) and [b, hi) need the mask. Every row sees all columns in [a, b). No row sees the columns
    outside [lo, hi), so their tiles are skipped.
    """
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
def visible(keys, positions, before, after, BEFORE: tl.constexpr, AFTER: tl.constexpr):
    """Return whether each key is visible from each position. `keys` and `positions` are broadcast against each other.

    Each key is compared with the bounds of each position. A comparison of the differences key - position would be
    slower: they change only by a constant from tile to tile, so the compiler would keep a matrix of them in registers.
    """
    seen = keys == keys
    if BEFORE:
        seen = seen & (keys >= positions - before)
    if AFTER:
        seen = seen & (keys <= positions + after)
    return seen


@triton.jit
def head_rows(x, batch, head, start, batch_stride, head_stride, stride, TMA: tl.constexpr):
    """Return the rows of one head from row `start` on, in the form that `matrix_tiles` takes: an address, or with
    descriptors of the launcher, the descriptor and the indices of the sequence and the head."""
    if TMA == HOST:
        return x, tl.cast(batch, tl.int32), tl.cast(head, tl.int32)
    else:
        return x + batch * batch_stride + head * head_stride + tl.cast(start, tl.int64) * stride


@triton.jit
def matrix_tiles(
    matrix, rows, stride, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PADDED: tl.constexpr, TMA: tl.constexpr
):
    """Return a matrix [rows, WIDTH] of `head_rows` in the form that `load_tile` takes."""
    if TMA == DEVICE:
        return tl.make_tensor_descriptor(matrix, [rows, WIDTH], [tl.cast(stride, tl.int64), 1], [BLOCK, PADDED])
    else:
        return matrix


@triton.jit
def load_tile(
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
    """Load the tile that begins at `row`, with zeros outside the matrix. INSIDE: all rows of the tile are in the
    matrix."""
    if TMA == HOST:
        tiles, batch, head = matrix
        return tiles.load([batch, head, row, 0]).reshape(BLOCK, PADDED)
    elif TMA == DEVICE:
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
def group_tiles(
    first,
    heads,
    rows,
    head_stride,
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
    TMA: tl.constexpr,
):
    """Return the matrices of several heads in the form that `load_group_tile` takes. `first` is the first of them, in
    the form of `head_rows`. One descriptor describes all heads."""
    if TMA == DEVICE:
        return tl.make_tensor_descriptor(
            first,
            [heads, rows, WIDTH],
            [tl.cast(head_stride, tl.int64), tl.cast(stride, tl.int64), 1],
            [1, BLOCK, PADDED],
        )
    else:
        return first


@triton.jit
def load_group_tile(
    matrices,
    member,
    row,
    rows,
    head_stride,
    stride,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    PADDED: tl.constexpr,
    TMA: tl.constexpr,
):
    """Load a tile of one head, with zeros outside its matrix."""
    if TMA == HOST:
        tiles, batch, first = matrices
        return tiles.load([batch, first + member, row, 0]).reshape(BLOCK, PADDED)
    elif TMA == DEVICE:
        return matrices.load([member, row, 0]).reshape(BLOCK, PADDED)
    else:
        matrix = matrices + member * tl.cast(head_stride, tl.int64)
        return load_tile(matrix, row, rows, stride, WIDTH, BLOCK, PADDED, TMA, False)
