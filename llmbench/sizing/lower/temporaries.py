"""The temporaries of plain torch, which computes step by step what a fused kernel computes at once.

Each step makes a tensor, which stays as long as a Python name refers to it. The functions follow
llmbench/model/implementations/plain.py and sdpa.py line by line; torch's own steps are those of
aten/src/ATen/native (2.11 to 2.13): SoftMax.cpp (softmax in another format: a copy in that first), LinearAlgebra.cpp
(matmul copies what is not contiguous), layer_norm.cpp (RMSNorm), transformers/attention.cpp (masks).

B batch, N query heads, S query length, T key length. All figures are bytes unless they say elements.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Steps", "dense_mask", "rotation", "sdpa_scores", "stepwise_norm", "stepwise_scores"]


class Steps(NamedTuple):
    """The highest moment of a forward pass, with inputs and results; the additional bytes saved for backward; and the
    highest moment of backward, with the result's gradient, without the saved bytes."""

    forward_bytes: int
    saved_bytes: int
    backward_bytes: int


def stepwise_scores(
    squares: int, own: int, *, queries: int, keys: int, values: int, output: int, biased: bool, soft_cap: bool
) -> int:
    """The highest moment of softmax(q kᵀ) v step by step, without q, k and v.

    squares: elements of the scores; own: their bytes in the products' format. queries, keys, values: copies that
    products make of inputs that are not contiguous matrices. An fp32 bias exists all the time, and makes all scores
    fp32.
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
    """The highest moment of making the mask tensor for torch's SDPA.

    For each of `pairs` (B·S·T) there are a bool, its negation, and `pair` bytes of the mask in q's format. With an fp32
    bias for all `squares` (B·N·S·T) there is the bias, then its copy in q's format (`own` bytes), then that masked.
    """
    if not biased:
        return pairs * (2 + pair)
    wide = 4 * squares
    return max(wide + (0 if own == wide else own), 2 * own)


def stepwise_norm(elements: int, data: int, *, weighted: bool, keeps: bool) -> Steps:
    """RMSNorm of `elements` (`data` bytes), step by step.

    Forward has x in fp32, x normed, the product with the weight, and the result in x's format. Backward has the
    gradients of the last two, and two terms of x's gradient. A norm that does not save the fp32 tensors (OffsetRMSNorm)
    computes them again and overwrites as many.
    """
    wide = 4 * elements
    copy = 0 if data == wide else wide
    forward = data + copy + (2 * wide if weighted else wide + (data if copy else 0))
    kept = copy + (wide if weighted else 0) if keeps else 0
    return Steps(forward, kept, data + 4 * wide + (0 if keeps else copy))


def rotation(queries: int, keys: int, data: int, *, interleaved: bool) -> Steps:
    """Rotation of so many elements of q and then of k (`data` bytes together), step by step.

    Each tensor is converted to fp32 if it has another format. Then each half is two products and their sum, and both
    halves are joined. Backward does the same to the gradients, first of k; where pairs are neighbours, the gradient of
    a half is as wide as both.
    """
    element = data // (queries + keys)
    step = 8 if element == 4 else 12
    back = 12 if interleaved else step
    forward = max(step * queries, element * queries + step * keys)
    return Steps(data + forward, 0, data + max(back * keys, element * keys + back * queries))


def sdpa_scores(squares: int, *, queries: int, keys: int, values: int, given: int, output: int) -> int:
    """The highest moment of softmax(q kᵀ) v by torch's SDPA without a kernel, beside q, k and v of `given` bytes.

    It computes in fp32, copies 16-bit inputs to that, and makes scaled copies of q and k. queries, keys, values:
    elements of the inputs.
    """
    elements = queries + keys + values
    copies = 0 if given == 4 * elements else 4 * elements
    return copies + 4 * (queries + keys) + max(2 * 4 * squares, 4 * squares + output)
