"""Bytes that an implementation of attention moves between a chip and its memory.

`work` counts the least bytes of any implementation. Here, each implementation has its own bytes:

- Standard attention writes its scores to memory. The forward pass moves four matrices of scores (S is written, read by
  the softmax, which writes P, and P is read). The backward pass moves seven (see `work`). These are the passes of
  algorithms 0 and 3 of FlashAttention (arXiv 2205.14135), which have no separate passes for a mask, a scale or dropout.
- Flash attention writes no scores. Each block of queries reads the keys and values that it sees, and in the backward
  pass each block of keys also reads the queries and the gradients of their results. So flash attention reads its inputs
  once per block. This is the traffic if no cache keeps them between two blocks. With a cache that keeps them all, the
  traffic is the least traffic of `work`.
"""

from __future__ import annotations

from llmbench.sizing.dtypes import DType, bytes_of
from llmbench.sizing.lower.pairs import keys_of_blocks
from llmbench.sizing.op import Op
from llmbench.sizing.work import Pass, work
from llmbench.spec.mixer import AttentionKind

__all__ = ["BLOCK", "attention_bytes"]

BLOCK = 128
"""Rows per block of flash attention: those of FlashAttention-2 and of our kernels, for 16-bit heads of up to 128
elements on NVIDIA's Hopper."""


def attention_bytes(
    op: Op, mixer: AttentionKind, direction: Pass, *, batch: int, seq_len: int, dtype: DType, block: int = BLOCK
) -> int:
    """Return the bytes that one pass of attention moves over whole sequences, for all instances of the op.

    op: the attention core of a training step, with the scores that its implementation writes.
    mixer: the attention of the op, which has the mask. dtype: the format of the activations.
    block: rows per block of flash attention.
    """
    moved = work([op], direction).bytes
    if op.score_bytes:
        return moved
    assert op.scores is not None
    qk_dim, v_dim, heads, _ = op.scores
    keys = keys_of_blocks(
        seq_len, block, causal=mixer.causal, window=mixer.sliding_window, chunk=mixer.attention_chunk_size
    )
    by_blocks = bytes_of(batch * heads * keys * (qk_dim + v_dim), dtype)
    once = op.read_bytes - bytes_of(batch * heads * seq_len * qk_dim, dtype)  # keys and values
    # Backward: one kernel reads O and dO, the next one dO once and K and V by blocks, the last one Q and dO by blocks.
    extra = {"forward": by_blocks - once, "backward": op.written_bytes + 2 * by_blocks}
    return moved + op.count * (sum(extra.values()) if direction == "both" else extra[direction])
