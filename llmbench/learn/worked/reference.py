"""Calls of the PyTorch model's own functions, with which worked examples are compared."""

from __future__ import annotations

import torch
from torch import Tensor

from llmbench.model.implementations.interface import Given, Mask, Scores
from llmbench.model.implementations.plain import attend
from llmbench.spec.ffn import Gated
from llmbench.spec.mixer import Attention
from llmbench.spec.model import Layer, ModelSpec


def model_attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool, slopes: Tensor | None = None) -> Tensor:
    """Return the attention of the `standard` implementation for queries and keys [T, H] and values [T, H] of one head.

    slopes [1]: the slope of ALiBi.
    """
    queries, keys = (torch.arange(len(x))[None] for x in (q, k))
    mask = Mask(queries, keys, causal, None, None, plain=not causal)
    scores = Scores(q.shape[-1] ** -0.5, slopes=slopes)
    return attend(q[None, None], Given(k[None, None], v[None, None], mask), scores)[0, 0]


def tiny_spec(dim: int) -> ModelSpec:
    """Return a model with one layer and one head of width `dim`."""
    mixer = Attention(num_attention_heads=1, num_key_value_heads=1, head_dim=dim)
    layer = Layer(mixer=mixer, ffn=Gated(intermediate_size=4 * dim))
    return ModelSpec(
        name="tiny",
        vocab_size=16,
        hidden_size=dim,
        layers={"block": layer},
        pattern="1*block",
        tie_word_embeddings=True,
    )
