"""The cache pools of an engine: how many requests of a length fit into the bytes of a cache.

Each engine arranges layers with different rules in its own way. A pool answers three questions: the tokens that the
engine prints, the bytes that one request takes, and the number of requests of one length that fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import floor
from typing import ClassVar, NamedTuple, Protocol

import msgspec

from llmbench.sizing.serving.shard import Rows
from llmbench.spec.engine import Engine

UNLIMITED = 2**31
"""The number of requests that fit if a request takes no cache."""


class Pool(Protocol):
    """The cache of one GPU."""

    @property
    def tokens(self) -> int:
        """The number of tokens that the engine prints as the size of its cache."""

    @property
    def counts_all(self) -> bool:
        """Whether `tokens` counts as if every layer stored all tokens, although some do not."""

    def request_bytes(self, length: int) -> int:
        """Return the bytes that one request of `length` tokens takes."""

    def requests(self, length: int) -> int:
        """Return the number of requests of `length` tokens that fit."""


def visible_tokens(rows: Rows, length: int) -> int:
    """Return the tokens of one sequence that a layer needs."""
    return min(length, rows.tokens) if rows.tokens else length


class PlainPool(msgspec.Struct, frozen=True):
    """A cache in which every layer stores the tokens that it needs, in blocks of `block` tokens.

    size: bytes of the cache. rows: the layers. block: tokens per block.
    """

    size: int
    rows: Sequence[Rows]
    block: int
    counts_all: ClassVar[bool] = False

    @property
    def tokens(self) -> int:
        """The number of tokens of one long sequence that fit, without states and windows."""
        growing = sum(rows.layers * rows.row_bytes for rows in self.rows if rows.visible == "all")
        return 0 if not growing else max(0, floor(self.size / growing)) // self.block * self.block

    def request_bytes(self, length: int) -> int:
        """Return the bytes that one request of `length` tokens takes."""
        total = Fraction(0)
        for rows in self.rows:
            kept = visible_tokens(rows, length)
            total += rows.layers * (rows.state_bytes + -(-kept // self.block) * self.block * rows.row_bytes)
        return -floor(-total)

    def requests(self, length: int) -> int:
        """Return the number of requests of `length` tokens that fit."""
        needed = self.request_bytes(length)
        return max(0, self.size) // needed if needed else UNLIMITED


class Group(NamedTuple):
    """Layers of vLLM's cache that share block tables.

    rows: rule of the layers. groups: number of groups. block: tokens per block.
    """

    rows: Rows
    groups: int
    block: int


class PagedPool(msgspec.Struct, frozen=True, kw_only=True):
    """vLLM's cache: blocks of equal size, each of which stores some tokens of all layers of one group.

    size: bytes of the cache. block_bytes: bytes of one block of a group, over all its layers.
    groups: the groups. batched: largest number of tokens in one step. A window needs room for them.
    padding: number of layers that exist only to fill the groups.
    """

    size: int
    block_bytes: int
    groups: tuple[Group, ...]
    batched: int
    padding: int

    @property
    def blocks(self) -> int:
        """The number of blocks of the cache."""
        return max(0, self.size) // self.block_bytes if self.block_bytes else 0

    @property
    def tokens(self) -> int:
        """The number of tokens that vLLM prints. A model with several groups counts each of them."""
        every = sum(group.groups for group in self.groups)
        paged = [group.block for group in self.groups if group.rows.visible != "state"]
        return self.blocks // every * min(paged) if paged else 0

    @property
    def counts_all(self) -> bool:
        """Whether `tokens` counts as if every layer stored all tokens, although some do not."""
        return len(self.groups) > 1

    def request_blocks(self, length: int) -> int:
        """Return the number of blocks that one request of `length` tokens needs."""
        return sum(group.groups * self._blocks(group, length) for group in self.groups)

    def _blocks(self, group: Group, length: int) -> int:
        rows, block = group.rows, group.block
        match rows.visible:
            case "state":
                return 1
            case "window":
                return -(-min(rows.tokens - 1 + self.batched, length) // block) + 1
            case "chunk":
                return -(-min(rows.tokens + self.batched, length) // block)
            case _:
                return -(-length // block)

    def request_bytes(self, length: int) -> int:
        """Return the bytes that one request of `length` tokens takes."""
        return self.request_blocks(length) * self.block_bytes

    def requests(self, length: int) -> int:
        """Return the number of requests of `length` tokens that fit."""
        needed = self.request_blocks(length)
        return self.blocks // needed if needed else UNLIMITED


def paged_pool(size: int, rows: Sequence[Rows], engine: Engine, batched: int) -> PagedPool:
    """Arrange the layers in groups as vLLM's hybrid cache manager does (vllm/v1/core/kv_cache_utils.py).

    If all layers have one rule, they form one group, and each layer has its own width. Otherwise a group has as many
    layers as the smallest class of layers with equal rules, or as the largest class if this is at most `group_percent`
    of the smallest one. Each class is padded up to a multiple of this number. An engine without the manager keeps all
    tokens in every layer.
    """
    block = engine.whole("latent_block_tokens" if any(r.latent for r in rows) else "block_tokens")
    paged = [
        r if engine.whole("groups_layers") or r.visible == "state" else r._replace(visible="all", tokens=0)
        for r in rows
    ]
    rules = {(r.visible, r.tokens) for r in paged}
    if len(rules) <= 1:
        page = sum(r.layers * (r.state_bytes + block * r.row_bytes) for r in paged)
        group = (Group(paged[0], 1, block),) if paged else ()
        return PagedPool(size=size, block_bytes=-floor(-page), groups=group, batched=batched, padding=0)
    block_of = _equal_pages(paged, block)
    page_bytes = max(r.state_bytes + floor(block_of[r] * r.row_bytes) for r in paged)
    counts = {rule: sum(r.layers for r in paged if (r.visible, r.tokens) == rule) for rule in rules}
    smallest, largest = min(counts.values()), max(counts.values())
    layers = largest if 100 * largest < engine.whole("group_percent") * smallest else smallest
    groups = []
    for rule in sorted(rules):
        first = next(r for r in paged if (r.visible, r.tokens) == rule)
        groups.append(Group(first, -(-counts[rule] // layers), block_of[first]))
    padding = sum(group.groups for group in groups) * layers - sum(counts.values())
    return PagedPool(size=size, block_bytes=page_bytes * layers, groups=tuple(groups), batched=batched, padding=padding)


def _equal_pages(rows: Sequence[Rows], block: int) -> dict[Rows, int]:
    """Return the tokens per block of each layer, so that all blocks have nearly the same bytes.

    The block of attention grows until it holds a recurrent state, in steps of `block`. The block of a narrower
    attention layer grows to the bytes of the widest one.
    """
    widest = max(r.row_bytes for r in rows)
    state = max(r.state_bytes for r in rows)
    grown = max(block, -(-state // floor(widest * block)) * block) if widest else block
    return {r: floor(grown * widest / r.row_bytes) if r.row_bytes else grown for r in rows}


class RatioPool(msgspec.Struct, frozen=True, kw_only=True):
    """SGLang's cache: a pool of tokens, a pool of tokens in windows, and a pool of states, in fixed ratios.

    tokens: tokens of the main pool. window_tokens: tokens of the pool of windows. None: there is no such pool.
    states: number of requests for which the pool of states has room. None: there is no such pool.
    cell: bytes of a token in all layers. rows: the layers.
    """

    tokens: int
    window_tokens: int | None
    states: int | None
    rows: tuple[Rows, ...]
    counts_all: ClassVar[bool] = False

    def request_bytes(self, length: int) -> int:
        """Return the bytes that one request of `length` tokens takes."""
        total = sum(r.layers * (r.state_bytes + visible_tokens(r, length) * r.row_bytes) for r in self.rows)
        return -floor(-total)

    def requests(self, length: int) -> int:
        """Return the number of requests of `length` tokens that fit."""
        fits = [UNLIMITED]
        if any(r.visible == "all" for r in self.rows):
            fits.append(self.tokens // length)
        if self.window_tokens is not None:
            widest = max(visible_tokens(r, length) for r in self.rows if r.visible in ("window", "chunk"))
            fits.append(self.window_tokens // widest)
        if self.states is not None:
            fits.append(self.states)
        return min(fits)


def ratio_pool(size: int, rows: Sequence[Rows], engine: Engine) -> RatioPool:
    """Divide a cache as SGLang does (sglang/srt/model_executor/pool_configurator.py).

    tokens = bytes / (full layers + r × layers with a window), and the pool of windows has r × tokens. A pool of states
    takes `states_percent` of the bytes of the other pools.
    """
    size = max(0, size)
    states = None
    state_bytes = sum(r.layers * r.state_bytes for r in rows)
    full = sum(r.layers * r.row_bytes for r in rows if r.visible == "all")
    windows = sum(r.layers * r.row_bytes for r in rows if r.visible in ("window", "chunk"))
    if state_bytes:
        percent = engine.whole("states_percent")
        pool = size * percent // (100 + percent) if full or windows else size
        states = pool // state_bytes // max(1, engine.whole("states_per_request", 1))
        size -= pool
    ratio = Fraction(engine.whole("windows_percent", 100), 100)
    cell = full + ratio * windows
    tokens = floor(size / cell) if cell else 0
    return RatioPool(
        tokens=tokens if full else 0,
        window_tokens=floor(ratio * tokens) if windows else None,
        states=states,
        rows=tuple(rows),
    )
