"""The attention probabilities of a model: how much each query attends to each key.

Dimensions: B batch, N query heads, S query length, T key length.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from llmbench.model.attention import AttentionLayer
from llmbench.model.cross import CrossAttentionLayer
from llmbench.model.decoder import Decoder
from llmbench.model.implementations.interface import Attend, Scores, Seen
from llmbench.model.implementations.plain import attend_and_show, latent_by
from llmbench.model.latent import LatentLayer

__all__ = ["AttentionMap", "record_attention"]


class AttentionMap(NamedTuple):
    """The attention of one layer in one forward pass.

    - `probabilities` [B, N, S, T]: the result of the softmax, before dropout. A row has the sum 1, or less if the layer
      has sinks.
    - `logits` [B, N, S, T]: the input of the softmax. Masked pairs have -inf. They tell which keys a query sees. The
      probabilities do not, because a very small probability becomes 0.
    """

    probabilities: Tensor
    logits: Tensor

    @property
    def largest_logit(self) -> Tensor:
        """The largest input [N] of the softmax of each head. Masked pairs and sinks do not count."""
        return self.logits.amax(dim=(0, 2, 3))


@contextmanager
def record_attention(model: Decoder) -> Iterator[dict[str, AttentionMap]]:
    """Record the attention of each softmax layer in the forward passes of a `with` block.

    Yields a dictionary from the name of a layer's attention, such as `layers.0.attention`, `layers.0.cross_attention`
    or `encoder.layers.0.attention`, to its AttentionMap in the last forward pass. The tensors are in the number format
    of the model and have no gradient.

    In the block, plain torch computes the attention. All other steps are those of the implementation of the model. The
    rows of padded queries have no meaning.
    """
    maps: dict[str, AttentionMap] = {}
    usual, current = model.implementation, ""

    def enter(name: str, *_: object) -> None:
        nonlocal current
        current = name

    def recording(heads: int) -> Attend:
        def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
            out, logits, weights = attend_and_show(q, seen, scores)
            # Absorbed latent attention has one head with the queries of all heads.
            logits, weights = (x.detach().reshape(len(x), heads, -1, x.shape[-1]) for x in (logits, weights))
            logits = logits[..., : weights.shape[-1]]
            masked = logits == torch.finfo(logits.dtype).min
            maps[current] = AttentionMap(weights, logits.masked_fill(masked, -torch.inf))
            return out

        return attend

    def attend(q: Tensor, seen: Seen, scores: Scores) -> Tensor:
        return recording(q.shape[1])(q, seen, scores)

    def attend_latent(q_latent: Tensor, q_rope: Tensor, seen: Seen, scores: Scores) -> Tensor:
        return latent_by(recording(q_latent.shape[1]))(q_latent, q_rope, seen, scores)

    hooks = [
        module.register_forward_pre_hook(partial(enter, name))
        for name, module in model.named_modules()
        if isinstance(module, (AttentionLayer, LatentLayer, CrossAttentionLayer))
    ]
    model.implementation = usual._replace(attend=attend, attend_latent=attend_latent)
    try:
        yield maps
    finally:
        model.implementation = usual
        for hook in hooks:
            hook.remove()
