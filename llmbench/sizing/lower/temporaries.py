"""Peak memory of functions that plain PyTorch computes in several steps and a fused kernel computes in one step.

Each step allocates a tensor. The tensor stays allocated as long as a Python name refers to it. This file follows
llmbench/model/implementations/plain.py and sdpa.py line by line. The steps inside PyTorch are those of
aten/src/ATen/native (2.11 to 2.13): SoftMax.cpp (a softmax into another format first copies its input to that format),
LinearAlgebra.cpp (matmul copies inputs that are not contiguous), layer_norm.cpp (RMSNorm), transformers/attention.cpp
(masks).

Symbols: B batch size, N query heads, S query length, T key length.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Steps", "dense_mask", "rotation", "sdpa_scores", "stepwise_norm", "stepwise_scores"]


class Steps(NamedTuple):
    """Memory in bytes of a function that is computed in several steps.

    forward_bytes: peak of the forward pass, including inputs and results.
    saved_bytes: bytes that are saved for the backward pass, in addition to those of a fused kernel.
    backward_bytes: peak of the backward pass, including the gradient of the result, without the saved bytes.
    """

    forward_bytes: int
    saved_bytes: int
    backward_bytes: int


def stepwise_scores(
    squares: int, own: int, *, queries: int, keys: int, values: int, output: int, biased: bool, soft_cap: bool
) -> int:
    """Return the peak bytes of softmax(q kᵀ) v computed in several steps, without q, k and v.

    squares: number of scores: batch × heads × queries × keys.
    own: bytes of the scores in the format of the activations.
    queries, keys, values: bytes of the copies that matrix products make of inputs that are not contiguous.
    output: bytes of the result.
    biased: whether an fp32 bias is added to the scores. The bias stays allocated during all steps, and the scores are
        fp32 after the sum.
    soft_cap: whether the scores have a soft cap.
    """
    wide = 4 * squares
    bias, logits = (wide, wide) if biased else (0, own)
    rounded = 0 if own == wide else own
    converted = 0 if logits == wide else wide
    # The comment on each line lists the tensors that exist at the same time in this step.
    return max(
        queries + keys + own,  # the product q kᵀ, and copies of its inputs
        3 * own if soft_cap else 2 * own,  # the scores before and after scaling; with a soft cap, also the tanh
        bias + own + logits,  # the bias, the scores and their sum
        bias + 2 * logits,  # the bias, and the scores before and after masking
        bias + logits + converted + wide,  # the bias, the masked scores, their fp32 copy, and the softmax
        bias + logits + wide + rounded,  # the bias, the masked scores, the fp32 softmax, and its rounded copy
        bias + logits + own + values + output,  # the bias, the masked scores, the probabilities, copied v, the output
    )


def dense_mask(squares: int, own: int, pairs: int, pair: int, *, biased: bool) -> int:
    """Return the peak bytes while the mask tensor for PyTorch's SDPA is computed.

    Without a bias, three tensors of `pairs` elements exist at the peak: a bool tensor, its negation, and the mask. With
    a bias, PyTorch first allocates the fp32 bias with `squares` elements, then a copy of it in the format of q (`own`
    bytes), and then the masked copy.

    squares: number of scores: batch × heads × queries × keys. own: bytes of the scores in the format of q.
    pairs: number of mask elements: batch × queries × keys. pair: bytes per mask element in the format of q.
    """
    if not biased:
        return pairs * (2 + pair)
    wide = 4 * squares
    return max(wide + (0 if own == wide else own), 2 * own)


def stepwise_norm(elements: int, data: int, *, weighted: bool, keeps: bool) -> Steps:
    """Return the memory of an RMSNorm that is computed in several steps.

    The forward pass allocates x in fp32, the normalised x, the product with the weight, and the result in the format of
    x. The backward pass allocates the gradients of the last two tensors, and two terms of the gradient of x.

    elements: number of elements of x. data: bytes of x.
    weighted: whether the norm has a weight.
    keeps: whether the forward pass saves the fp32 tensors. If false (OffsetRMSNorm), the backward pass computes them
        again. Then only the fp32 copy of x needs extra memory, because the other tensors reuse freed memory.
    """
    wide = 4 * elements
    copy = 0 if data == wide else wide
    forward = data + copy + (2 * wide if weighted else wide + (data if copy else 0))
    saved = copy + (wide if weighted else 0) if keeps else 0
    return Steps(forward, saved, data + 4 * wide + (0 if keeps else copy))


def rotation(queries: int, keys: int, data: int, *, interleaved: bool) -> Steps:
    """Return the memory of RoPE's rotation, which rotates first q and then k in several steps.

    A tensor that is not fp32 is first converted to fp32. For each half of a head, two products and their sum are
    computed. Then the two halves are concatenated. The backward pass does the same with the gradients, first with the
    gradient of k.

    queries, keys: numbers of elements of q and of k. data: bytes of q and k together.
    interleaved: whether a rotated pair consists of neighbouring elements. The gradient of one half is then as wide as
        both halves together.
    """
    element = data // (queries + keys)
    step = 8 if element == 4 else 12
    back = 12 if interleaved else step
    forward = max(step * queries, element * queries + step * keys)
    return Steps(data + forward, 0, data + max(back * keys, element * keys + back * queries))


def sdpa_scores(squares: int, *, queries: int, keys: int, values: int, input_bytes: int, output: int) -> int:
    """Return the peak bytes of softmax(q kᵀ) v in PyTorch's SDPA without a flash kernel, without q, k and v.

    SDPA then computes in fp32. It copies 16-bit inputs to fp32, and makes scaled copies of q and k.

    squares: number of scores. queries, keys, values: numbers of elements of q, k and v.
    input_bytes: bytes of q, k and v together. output: bytes of the result.
    """
    elements = queries + keys + values
    copies = 0 if input_bytes == 4 * elements else 4 * elements
    return copies + 4 * (queries + keys) + max(2 * 4 * squares, 4 * squares + output)
