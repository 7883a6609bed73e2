"""The keys and values that new tokens see: their own, and those of a cache, which stores the new ones.

B batch, K KV heads, S new tokens, T keys, H head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmbench.model.implementations.interface import Given, Mask, Seen, Slots
from llmbench.model.layer_cache import LayerCache
from llmbench.model.step import Step


class CachedKV:
    """Keys and values of a cache, as a Seen: gathered when they are asked for."""

    def __init__(self, cache: LayerCache, mask: Mask, lengths: Tensor, dtype: torch.dtype) -> None:
        self.cache, self.mask, self.lengths, self.dtype = cache, mask, lengths, dtype

    @property
    def k(self) -> Tensor:
        """Keys [B, K, T, H]."""
        return self.cache.gathered_keys(self.dtype)

    @property
    def v(self) -> Tensor:
        """Values [B, K, T, H]."""
        return self.cache.gathered_values(self.dtype)

    @property
    def slots(self) -> Slots:
        """Keys and values as they lie in memory."""
        return self.cache.slots(self.lengths)


def context(
    k: Tensor,
    v: Tensor,
    step: Step,
    cache: LayerCache | None,
    *,
    causal: bool,
    window: int | None,
    chunk: int | None,
) -> Seen:
    """All keys and values [B, K, T, H] that the new tokens may see. The cache, where there is one, stores the new ones.

    Where sequences start here, the new tokens see only each other, and kernels may build the mask. Padding is then at
    the end of a row, where causality hides it from every real token.
    """
    queries = step.positions
    if step.plain:
        if cache is not None:
            cache.fill(k, v, queries, step.valid)
        if step.valid is None or causal:
            return Given(k, v, Mask(queries, queries, causal, window, chunk, True))
        return Given(k, v, Mask(queries, queries.masked_fill(~step.valid, -1), causal, window, chunk, False))
    assert cache is not None
    assert step.lengths is not None
    if cache.overwrites(k.shape[2]):
        old = CachedKV(
            cache, Mask(queries, cache.token_positions(), causal, window, chunk, False), step.lengths, k.dtype
        )
        # Padding has positions behind every real token: a padded query that saw no key would become a NaN.
        mask = old.mask._replace(keys=torch.cat((old.mask.keys, queries), dim=1))
        seen = Given(torch.cat((old.k, k), dim=2), torch.cat((old.v, v), dim=2), mask)
        cache.fill(k, v, queries, step.valid)
        return seen
    cache.fill(k, v, queries, step.valid)
    return CachedKV(cache, Mask(queries, cache.token_positions(), causal, window, chunk, False), step.lengths, k.dtype)
