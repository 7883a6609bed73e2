"""The number of (query, key) pairs for which attention computes a score."""

from __future__ import annotations


def visible_pairs(
    query_len: int,
    kv_len: int,
    *,
    causal: bool = True,
    window: int | None = None,
    chunk: int | None = None,
    masked_too: bool = False,
) -> int:
    """Return the number of (query, key) pairs that the mask shows, for one sequence and one head.

    The queries have the last `query_len` of `kv_len` positions. Positions count from 0.

    causal: a query at position p sees at most p + 1 keys. If false, a query sees every key. If false and with a window,
        a query sees the keys on both sides up to a distance of window // 2.
    window: largest number of keys that a causal query sees, including its own.
    chunk: length of a chunk. A query sees only keys in its own chunk.
    masked_too: also count the pairs that the mask hides.
    """
    if masked_too:
        return query_len * kv_len
    first = kv_len - query_len
    if not causal:
        if window is None:
            return query_len * kv_len
        reach = window // 2
        behind = _sum_capped(kv_len - 1, reach) - _sum_capped(first - 1, reach)
        ahead = _sum_capped(query_len - 1, reach)
        return behind + ahead + query_len  # keys before the query, keys after the query, and the query's own key
    if chunk is not None:
        return _sum_chunked(kv_len, chunk) - _sum_chunked(first, chunk)
    limit = kv_len if window is None else window
    return _sum_capped(kv_len, limit) - _sum_capped(first, limit)


def keys_of_blocks(
    length: int, block: int, *, causal: bool = True, window: int | None = None, chunk: int | None = None
) -> int:
    """Return how many keys all blocks of `block` consecutive queries read together, for one sequence and one head.

    A block reads every key that at least one of its queries sees. The sequence has `length` queries and `length` keys.
    The mask is that of `visible_pairs`.
    """
    keys = 0
    for first in range(0, length, block):
        end = min(first + block, length)
        if not causal:
            reach = length if window is None else window // 2
            keys += min(end + reach, length) - max(first - reach, 0)
            continue
        start = 0 if window is None else max(first - window + 1, 0)
        keys += end - (start if chunk is None else max(start, first // chunk * chunk))
    return keys


def _sum_capped(length: int, limit: int) -> int:
    """Return the sum of min(p + 1, limit) over all positions p < length."""
    length = max(length, 0)
    rising = min(length, limit)
    return rising * (rising + 1) // 2 + (length - rising) * limit


def _sum_chunked(length: int, chunk: int) -> int:
    """Return the sum of (p mod chunk + 1) over all positions p < length."""
    whole, rest = divmod(length, chunk)
    return whole * (chunk * (chunk + 1) // 2) + rest * (rest + 1) // 2


def compressed_pairs(query_len: int, kv_len: int, *, rate: int, top_k: int | None, masked_too: bool = False) -> int:
    """Return the number of (query, entry) pairs of compressed attention, for one sequence and one head.

    An entry summarises `rate` consecutive tokens. A query sees the entries that are complete at its position, but at
    most `top_k` of them.

    masked_too: also count the pairs that the mask hides.
    """
    if masked_too:
        return query_len * (kv_len // rate)
    return _sum_entries(kv_len, rate, top_k) - _sum_entries(kv_len - query_len, rate, top_k)


def _sum_entries(length: int, rate: int, top_k: int | None) -> int:
    """Return the sum of min((p + 1) // rate, top_k) over all positions p < length."""
    free = length if top_k is None else min(length, top_k * rate)
    whole, rest = divmod(free, rate)
    rising = rate * (whole - 1) * whole // 2 + whole * (rest + 1) if whole else 0
    return rising + (length - free) * (top_k or 0)
