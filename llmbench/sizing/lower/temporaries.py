"""What plain torch holds while it computes step by step what a kernel of its own would do at once.

Each step makes a tensor, and what a Python name still refers to stays. The functions are those of
llmbench/model/implementations/plain.py and sdpa.py, followed line by line; torch's own steps are those of
aten/src/ATen/native (2.11 to 2.13): SoftMax.cpp (softmax in another format: a copy in that first), LinearAlgebra.cpp
(matmul copies what is not contiguous), layer_norm.cpp (RMSNorm), transformers/attention.cpp (masks).

B batch, N query heads, S query length, T key length. All figures are bytes unless they say elements.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Steps", "dense_mask", "held_scores", "rotation", "sdpa_scores", "stepwise_norm"]


class Steps(NamedTuple):
    """The fullest moment of a forward, with inputs and results; what is kept beside for backward; and the fullest
    moment of that, with the result's gradient, beside what was kept."""

    forward_bytes: int
    saved_bytes: int
    backward_bytes: int


def held_scores(
    squares: int, own: int, *, queries: int, keys: int, values: int, output: int, biased: bool, soft_cap: bool
) -> int:
    """Fullest moment of softmax(q kᵀ) v by its steps, beside q, k and v.

    `squares`: scores in elements, `own`: their bytes as products make them. `queries`, `keys`, `values`: copies that
    products make of inputs that are no contiguous matrices. An fp32 bias is held throughout, and makes all scores fp32.
    """
    wide = 4 * squares
    bias, logits = (wide, wide) if biased else (0, own)
    rounded = 0 if own == wide else own
    converted = 0 if logits == wide else wide
    return max(
        queries + keys + own,  # the product
        3 * own if soft_cap else 2 * own,  # scaled; or divided, and its tanh
        bias + own + logits,  # with the bias
        bias + 2 * logits,  # masked
        bias + logits + converted + wide,  # the softmax, of the logits in fp32
        bias + logits + wide + rounded,
        bias + logits + own + values + output,  # the product with the values
    )


def dense_mask(squares: int, own: int, pairs: int, pair: int, *, biased: bool) -> int:
    """What a mask takes that torch's SDPA is handed, at its fullest moment: of `pairs` (B·S·T), a bool and `pair` bytes
    of the same in q's format, and while that is made its negation; with an fp32 bias of all `squares` (B·N·S·T), that
    in q's format (`own` bytes), once more masked."""
    if not biased:
        return pairs * (2 + pair)
    wide = 4 * squares
    return max(wide + (0 if own == wide else own), 2 * own)


def stepwise_norm(elements: int, data: int, *, weighted: bool, keeps: bool) -> Steps:
    """RMSNorm of `elements` (`data` bytes): in fp32 x, x normed, and that times the weight; the result in x's format.
    Backward has the gradients of the last two, and that of x by either way; one that does not keep x in fp32, and
    normed, makes them again (OffsetRMSNorm) and overwrites as much."""
    wide = 4 * elements
    copy = 0 if data == wide else wide
    forward = data + copy + (2 * wide if weighted else wide + (data if copy else 0))
    kept = copy + (wide if weighted else 0) if keeps else 0
    return Steps(forward, kept, data + 4 * wide + (0 if keeps else copy))


def rotation(queries: int, keys: int, data: int, *, interleaved: bool) -> Steps:
    """Rotation of so many elements of q and then k (`data` bytes together): each in fp32, where it is not yet; of a
    half two products and their sum, then of the other, then both together. Backward does the same to the gradients, of
    k first; where pairs are neighbours, a half's gradient is laid out as wide as both."""
    each = data // (queries + keys)
    step = 8 if each == 4 else 12
    back = 12 if interleaved else step
    forward = max(step * queries, each * queries + step * keys)
    return Steps(data + forward, 0, data + max(back * keys, each * keys + back * queries))


def sdpa_scores(squares: int, *, queries: int, keys: int, values: int, given: int, output: int) -> int:
    """Fullest moment of the same by torch's SDPA where it has no kernel, beside q, k and v of `given` bytes: all in
    fp32, for which it copies what is in 16 bits, and q and k scaled, once more. Figures of inputs in elements."""
    elements = queries + keys + values
    copies = 0 if given == 4 * elements else 4 * elements
    return copies + 4 * (queries + keys) + max(2 * 4 * squares, 4 * squares + output)
