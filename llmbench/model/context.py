"""The keys and values that the new tokens of a forward pass see. They come from the pass itself and from a cache.

Dimensions: B batch, K KV heads, S new tokens, T keys, H head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmbench.model.implementations.interface import Given, Mask, Seen, Slots
from llmbench.model.layer_cache import LayerCache
from llmbench.model.step import Step


class CachedKV:
    """The keys and values in a cache, with the interface `Seen`. Each access to `k` or `v` gathers the stored rows."""

    def __init__(self, cache: LayerCache, mask: Mask, lengths: Tensor, dtype: torch.dtype) -> None:
        self.cache, self.mask, self.lengths, self.dtype = cache, mask, lengths, dtype

    @property
    def k(self) -> Tensor:
        """The keys [B, K, T, H], gathered from the cache."""
        return self.cache.gathered_keys(self.dtype)

    @property
    def v(self) -> Tensor:
        """The values [B, K, T, H], gathered from the cache."""
        return self.cache.gathered_values(self.dtype)

    @property
    def slots(self) -> Slots:
        """The keys and values at their place in the cache, for kernels that read the cache directly."""
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
    """Return all keys and values [B, K, T, H] that the new tokens may see, and store the new ones in the cache.

    If all sequences start with this forward pass, the new tokens see only each other, and a kernel may build the mask
    itself. A causal mask then also hides padding: padding stands at the end of a row, after all real tokens.
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
        # The positions of padded keys stay in the mask. Real queries still cannot see these keys, because padding comes
        # after all real tokens. A padded query needs these keys: a softmax over no keys would give NaN.
        mask = old.mask._replace(keys=torch.cat((old.mask.keys, queries), dim=1))
        seen = Given(torch.cat((old.k, k), dim=2), torch.cat((old.v, v), dim=2), mask)
        cache.fill(k, v, queries, step.valid)
        return seen
    cache.fill(k, v, queries, step.valid)
    return CachedKV(cache, Mask(queries, cache.token_positions(), causal, window, chunk, False), step.lengths, k.dtype)
