"""The ops of the head and of the loss: the product with the vocabulary, and the cross-entropy of the logits."""

from __future__ import annotations

from typing import assert_never

from llmbench.sizing.dtypes import bytes_of
from llmbench.sizing.lower.builder import Builder, Dim, share
from llmbench.sizing.op import Collective

CHUNKS = 8
"""Number of chunks of a chunked loss (torchtune's CEWithChunkedOutputLoss, num_output_chunks)."""

FEWEST_ROWS = 256
"""The smallest number of tokens in a chunk of a linear loss (kernels/loss/linear.py)."""


def head_and_loss(b: Builder, size: Dim) -> None:
    """Add the head. In training, also add the loss, which covers every position. `size`: width of the head's input."""
    head, w = b.spec.head, b.workload
    vocab = Dim(b.spec.vocab_size, "vocab_size")
    tokens = b.tokens if w.logits is None else share(w.batch * min(w.logits, w.query_len), b.layout.cp)
    logits = tokens * share(vocab.size, b.layout.tp)
    linear = w.phase == "train" and w.loss == "linear"
    memory: dict[str, int] = {}
    if linear:
        memory = {"forward_bytes": b.act(b.tokens * size.size), "backward_bytes": 0}
    elif w.phase == "train" and w.loss == "chunked":
        memory = {"backward_bytes": _chunked_head_backward(b, size.size, logits)}
    b.linear(
        "lm_head",
        "lm_head",
        size,
        vocab,
        bias=head.bias and head.transform != "bert",
        split="column",
        tied=b.spec.tie_word_embeddings or b.stack == "mtp",
        gathers=True,
        tokens=tokens,
        saves_input=not linear,
        **memory,
    )
    if head.bias and head.transform == "bert":
        b.vector("head.bias", "other", vocab, shards=b.layout.tp)
    if head.fixed_bias:
        b.vector("fixed_bias", "other", vocab, shards=b.layout.tp, buffer=True)
    if w.phase != "train":
        return
    # A fused loss applies the soft cap when it reads the logits. Plain PyTorch computes the soft cap in steps and saves
    # the tanh. At the peak, three tensors exist: the logits, the tanh, and the divided logits or the result.
    if head.soft_cap is not None and not b.fused and not linear:
        b.elementwise("soft_cap", "lm_head", reads=logits, writes=logits, saves=logits, forward_bytes=b.act(3 * logits))
    _loss(b, size.size, logits)


def _loss(b: Builder, width: int, logits: int) -> None:
    """Add the cross-entropy loss.

    - plain, with eager kernels: PyTorch copies the logits to fp32 and saves an fp32 log-softmax. The backward pass
      allocates two more fp32 tensors with one element per logit. If the loss is split over a tensor-parallel group, the
      backward pass allocates three such tensors, because PyTorch's loss_parallel computes it in several steps.
    - plain, with fused kernels: the loss computes an fp32 softmax in its fp32 copy of the logits, and saves it. The
      backward pass overwrites the softmax with the gradient, and copies the gradient to the format of the activations
      (Megatron's VocabParallelCrossEntropy). If the activations are fp32, the softmax overwrites the logits themselves,
      and the gradient needs no copy.
    - fused: like the latter, but the forward pass allocates the softmax apart from the fp32 copy of the logits
      (Megatron's --cross-entropy-loss-fusion with the implementation `native`).
    - inplace: the gradient overwrites the logits in the forward pass (Transformer Engine's and Liger's cross-entropy).
    - chunked: PyTorch's loss of one chunk of tokens after another (torchtune). All logits exist when the first chunk
      starts, but only one chunk has an fp32 copy. With eager kernels, the loss saves an fp32 log-softmax of each chunk.
      A fused or compiled kernel saves the logits, and one fp32 number per token.
    - linear: the head and the loss are one op. It stores the logits of one chunk of tokens, and computes the gradients
      of the hidden states and of the head in the forward pass (kernels/loss/linear.py, Liger).

    width: width of the head's input. logits: number of logits on this GPU.
    """
    own, w = b.act(logits), b.workload
    narrow = w.activation_dtype != "fp32"
    wide = 4 * logits if narrow else 0  # an fp32 copy of the logits
    rounded = own if narrow else 0  # the gradient in the format of the activations
    match w.loss:
        case "plain" if not b.fused:
            forward, saved, backward = own + 4 * logits + wide, 4 * logits, (8 if b.layout.tp == 1 else 12) * logits
        case "plain":
            forward, saved, backward = own + wide, 4 * logits, rounded
        case "fused":
            forward, saved, backward = own + wide + 4 * logits, 4 * logits, rounded
        case "inplace":
            forward, saved, backward = own, own, 0
        case "chunked" if b.fused:
            chunk = share(logits, CHUNKS)
            forward, saved, backward = own, own + 4 * b.tokens, b.act(chunk)
        case "chunked":
            chunk = share(logits, CHUNKS)
            forward, saved = own + 4 * logits + (4 * chunk if wide else 0), 4 * logits
            backward = 8 * chunk
        case "linear":
            hidden = b.act(b.tokens * width)
            local = logits // b.tokens
            rows = min(b.tokens, max(share(b.tokens, CHUNKS), FEWEST_ROWS))
            gradient = 0 if w.frozen_head else bytes_of(width * local, w.weight_dtype)
            forward, saved, backward = 2 * hidden + gradient + b.act(rows * local), hidden, 0
        case _:
            assert_never(w.loss)
    b.add(
        "loss",
        "lm_head",
        "loss",
        read_bytes=own,
        forward_bytes=forward,
        saved_bytes=saved,
        backward_bytes=backward,
        collectives=_loss_sums(b),
    )


def _loss_sums(b: Builder) -> tuple[Collective, ...]:
    """Return the collectives of a loss whose logits are split over the tensor-parallel group.

    Per token, the group computes the largest logit, the sum of the exponentials, and the logit of the target, in fp32.
    """
    if b.layout.tp == 1:
        return ()
    return 3 * (Collective("all_reduce", 4 * b.tokens, "tp", "forward"),)


def _chunked_head_backward(b: Builder, width: int, logits: int) -> int:
    """Return the bytes of the backward pass of a head whose logits have a chunked loss, without the weight's gradient.

    Autograd first runs the backward pass of the loss for all chunks, then that of the head. From the second chunk on,
    the new gradient of the weights is added to the gradient of the earlier chunks. Autograd allocates a third tensor
    for the sum, because these gradients are transposed views.
    """
    gradient = 0 if b.workload.frozen_head else bytes_of(width * (logits // b.tokens), b.workload.weight_dtype)
    chunk, hidden = share(logits, CHUNKS), share(b.tokens * width, CHUNKS)
    return max(b.act(logits + hidden), b.act(logits - 2 * chunk + 2 * hidden) + 2 * gradient)
