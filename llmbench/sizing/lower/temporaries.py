"""Peak temporary memory of plain torch, which computes in several steps what a fused kernel computes in one.

Each step allocates a tensor, which stays allocated as long as a Python name refers to it. The functions follow
llmbench/model/implementations/plain.py and sdpa.py line by line. The steps inside torch are those of
aten/src/ATen/native (2.11 to 2.13): SoftMax.cpp (a softmax in another format first copies its input to that format),
LinearAlgebra.cpp (matmul copies inputs that are not contiguous), layer_norm.cpp (RMSNorm), transformers/attention.cpp
(masks).

B batch size, N query heads, S query length, T key length. All figures are in bytes, except numbers of elements.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Steps", "dense_mask", "rotation", "sdpa_scores", "stepwise_norm", "stepwise_scores"]


class Steps(NamedTuple):
    """Memory of a function that is computed in several steps, in bytes.

    forward_bytes: peak of the forward pass, inputs and results included. saved_bytes: additional bytes that are saved
    for the backward pass. backward_bytes: peak of the backward pass, with the gradient of the result, without the saved
    bytes.
    """

    forward_bytes: int
    saved_bytes: int
    backward_bytes: int


def stepwise_scores(
    squares: int, own: int, *, queries: int, keys: int, values: int, output: int, biased: bool, soft_cap: bool
) -> int:
    """Peak bytes of softmax(q kᵀ) v in separate steps, without q, k and v.

    squares: elements of the scores (B·N·S·T). own: bytes of the scores in the activations' format. queries, keys,
    values: bytes of the copies that matrix products make of inputs that are not contiguous. An fp32 bias stays
    allocated during all steps, and the scores after it are fp32.
    """
    wide = 4 * squares
    bias, logits = (wide, wide) if biased else (0, own)
    rounded = 0 if own == wide else own
    converted = 0 if logits == wide else wide
    return max(
        queries + keys + own,  # the product q kᵀ, with the copies of its inputs
        3 * own if soft_cap else 2 * own,  # the scaled scores; with a soft cap the divided scores and the tanh
        bias + own + logits,  # the sum of scores and bias
        bias + 2 * logits,  # the masked scores
        bias + logits + converted + wide,  # the scores converted to fp32, and their softmax
        bias + logits + wide + rounded,  # the softmax converted to the activations' format
        bias + logits + own + values + output,  # the product of probabilities and values
    )


def dense_mask(squares: int, own: int, pairs: int, pair: int, *, biased: bool) -> int:
    """Peak bytes while the mask tensor for torch's SDPA is computed.

    Without a bias, each of `pairs` (B·S·T) needs a bool, the negated bool, and `pair` bytes of a mask in the format of
    q. With a bias, there is first an fp32 bias of `squares` (B·N·S·T) elements, then its copy in the format of q (`own`
    bytes), then the masked copy.
    """
    if not biased:
        return pairs * (2 + pair)
    wide = 4 * squares
    return max(wide + (0 if own == wide else own), 2 * own)


def stepwise_norm(elements: int, data: int, *, weighted: bool, keeps: bool) -> Steps:
    """Memory of an RMSNorm of `elements` elements (`data` bytes) in separate steps.

    The forward pass has x in fp32, the normalised x, the product with the weight, and the result in the format of x.
    The backward pass has the gradients of the last two, and two terms of the gradient of x. keeps: the fp32 tensors are
    saved. A norm that does not save them (OffsetRMSNorm) computes them again in the backward pass, and overwrites the
    same number of tensors.
    """
    wide = 4 * elements
    copy = 0 if data == wide else wide
    forward = data + copy + (2 * wide if weighted else wide + (data if copy else 0))
    kept = copy + (wide if weighted else 0) if keeps else 0
    return Steps(forward, kept, data + 4 * wide + (0 if keeps else copy))


def rotation(queries: int, keys: int, data: int, *, interleaved: bool) -> Steps:
    """Memory of the rotation of q and then of k in separate steps.

    queries, keys: elements of q and k. data: bytes of q and k together. Each tensor is converted to fp32 if it has
    another format. Each half of a head is then two products and their sum, and the two halves are joined. The backward
    pass does the same with the gradients, first that of k. interleaved: a pair consists of neighbouring elements, and
    the gradient of one half is as wide as both halves together.
    """
    element = data // (queries + keys)
    step = 8 if element == 4 else 12
    back = 12 if interleaved else step
    forward = max(step * queries, element * queries + step * keys)
    return Steps(data + forward, 0, data + max(back * keys, element * keys + back * queries))


def sdpa_scores(squares: int, *, queries: int, keys: int, values: int, given: int, output: int) -> int:
    """Peak bytes of softmax(q kᵀ) v in torch's SDPA without a kernel, without q, k and v.

    SDPA then computes in fp32: it copies 16-bit inputs to fp32, and makes scaled copies of q and k. squares, queries,
    keys, values: elements of the scores and of the inputs. given: bytes of q, k and v. output: bytes of the result.
    """
    elements = queries + keys + values
    copies = 0 if given == 4 * elements else 4 * elements
    return copies + 4 * (queries + keys) + max(2 * 4 * squares, 4 * squares + output)
