"""Worked examples: every number of every step of a tiny case, in fp64.

A topic is one file with a function `work`, and one line in `TOPICS`. This file imports no torch, so that the list of
topics needs none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llmbench.errors import LLMBenchError, unknown

if TYPE_CHECKING:
    from llmbench.learn.worked.step import Worked

__all__ = ["LARGEST", "TOPICS", "work"]

TOPICS = {
    "attention": "causal self-attention: projections, scores, mask, softmax and output",
    "rope": "rotary positions: a score depends only on the distance of query and key",
    "alibi": "linear biases: slopes of the heads, distances and their effect on the weights",
    "rmsnorm": "RMSNorm of [1, 3, 5, 7] and of further tokens",
    "flash": "online softmax: one block of keys after another, without the whole row of scores",
    "moe": "mixture of experts: logits, top-k, weights, outputs and load of the experts",
    "kv-cache": "decoding: which keys and values each step stores and reads again",
    "adamw": "three steps of AdamW: averages, bias correction, weight decay and update",
}
"""The summary of each topic. The file of a topic has its name."""

LARGEST = 8
"""The largest number of tokens and of channels. A table with more columns is wider than 80 characters."""


def work(topic: str, *, tokens: int | None = None, dim: int | None = None, seed: int = 0) -> Worked:
    """Compute a worked example. tokens, dim: None means the default of the topic.

    Raises UnknownNameError for an unknown topic, and LLMBenchError for a size that the topic does not have.
    """
    if topic not in TOPICS:
        raise unknown("topic", topic, TOPICS)
    module: Any = import_module(f"llmbench.learn.worked.{topic.replace('-', '_')}")
    case = module.DEFAULT._replace(seed=seed)
    case = case._replace(tokens=case.tokens if tokens is None else tokens, dim=case.dim if dim is None else dim)
    for option, size in (("--tokens", case.tokens), ("--dim", case.dim)):
        if not 1 <= size <= LARGEST:
            raise LLMBenchError(f"{option} {size}: must be from 1 to {LARGEST}")
    worked: Worked = module.work(case)
    return worked
