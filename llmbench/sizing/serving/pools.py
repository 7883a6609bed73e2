"""The cache pools of an engine: how many requests of a length fit into the bytes of a cache.

Each engine arranges layers with different rules in its own way. A pool answers four questions: the tokens that the
engine prints, the bytes that one request takes, the number of requests of one length that fit, and the cache that some
requests need.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cached_property
from math import ceil, floor
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

    def bytes_for(self, users: int, length: int) -> int:
        """Return the bytes of the smallest cache into which `users` requests of `length` tokens fit."""


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

    def bytes_for(self, users: int, length: int) -> int:
        """Return the bytes of the smallest cache into which `users` requests of `length` tokens fit."""
        return users * self.request_bytes(length)


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

    def bytes_for(self, users: int, length: int) -> int:
        """Return the bytes of the smallest cache into which `users` requests of `length` tokens fit."""
        return users * self.request_bytes(length)


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


class RatioPool(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """SGLang's cache: a pool of tokens, a pool of tokens in windows, and a pool of states, in fixed ratios.

    size: bytes of the cache. rows: the layers.
    window_percent: tokens of the pool of windows per 100 tokens of the main pool.
    states_percent: bytes of the pool of states per 100 bytes of the other pools.
    states_per_request: states that one request takes.
    """

    size: int
    rows: tuple[Rows, ...]
    window_percent: int
    states_percent: int
    states_per_request: int
    counts_all: ClassVar[bool] = False

    @cached_property
    def _full_bytes(self) -> Fraction:
        """The bytes of one token in the layers that keep all tokens."""
        return Fraction(sum(r.layers * r.row_bytes for r in self.rows if r.visible == "all"))

    @cached_property
    def _windows(self) -> list[Rows]:
        """The layers that keep only some tokens."""
        return [r for r in self.rows if r.visible in ("window", "chunk")]

    @cached_property
    def _cell(self) -> Fraction:
        """The bytes of one token of the main pool, with its share of the pool of windows."""
        return self._full_bytes + self._ratio * sum(r.layers * r.row_bytes for r in self._windows)

    @cached_property
    def _ratio(self) -> Fraction:
        return Fraction(self.window_percent, 100)

    @cached_property
    def _state_bytes(self) -> int:
        """The bytes of the states that one request takes."""
        return self.states_per_request * sum(r.layers * r.state_bytes for r in self.rows)

    @cached_property
    def _pool_of_states(self) -> int:
        """The bytes of the pool of states."""
        if not self._state_bytes:
            return 0
        return self.size * self.states_percent // (100 + self.states_percent) if self._cell else self.size

    @cached_property
    def _cells(self) -> int:
        """The number of tokens of the main pool, also if no layer keeps all tokens."""
        return floor((self.size - self._pool_of_states) / self._cell) if self._cell else 0

    @cached_property
    def tokens(self) -> int:
        """The number of tokens of the main pool."""
        return self._cells if self._full_bytes else 0

    @cached_property
    def window_tokens(self) -> int | None:
        """The number of tokens of the pool of windows. None: there is no such pool."""
        return floor(self._ratio * self._cells) if self._windows else None

    @cached_property
    def states(self) -> int | None:
        """The number of requests for which the pool of states has room. None: there is no such pool."""
        return self._pool_of_states // self._state_bytes if self._state_bytes else None

    def request_bytes(self, length: int) -> int:
        """Return the bytes that one request of `length` tokens takes."""
        total = sum(r.layers * (r.state_bytes + visible_tokens(r, length) * r.row_bytes) for r in self.rows)
        return -floor(-total)

    def requests_of_pools(self, length: int) -> tuple[int | None, int | None, int | None]:
        """Return the number of requests of `length` tokens that each pool stores: of tokens, windows and states.

        None: there is no such pool.
        """
        windows = self.window_tokens
        return (
            self.tokens // length if self._full_bytes else None,
            None if windows is None else windows // self._widest(length),
            self.states,
        )

    def _widest(self, length: int) -> int:
        """Return the tokens of one request in the pool of windows."""
        return max((visible_tokens(r, length) for r in self._windows), default=0)

    def requests(self, length: int) -> int:
        """Return the number of requests of `length` tokens that fit: those of the pool that is full first."""
        return min((each for each in self.requests_of_pools(length) if each is not None), default=UNLIMITED)

    def bytes_for(self, users: int, length: int) -> int:
        """Return the bytes of the smallest cache into which `users` requests of `length` tokens fit.

        The ratios are fixed, so the other pools grow with the one that is full first.
        """
        cells = users * length if self._full_bytes else 0
        if self._windows:
            cells = max(cells, ceil(users * self._widest(length) / self._ratio))
        tokens = ceil(cells * self._cell)
        states = users * self._state_bytes
        if not states or not tokens:
            return tokens + states
        # The pool of states gets floor(size × percent / (100 + percent)) bytes. Both pools must be large enough.
        whole = 100 + self.states_percent
        return max(ceil(Fraction(states * whole, self.states_percent)), (tokens - 1) * whole // 100 + 1)


def ratio_pool(size: int, rows: Sequence[Rows], engine: Engine) -> RatioPool:
    """Divide a cache as SGLang does (sglang/srt/model_executor/pool_configurator.py).

    tokens = bytes / (full layers + r × layers with a window), and the pool of windows has r × tokens. A pool of states
    takes `states_percent` of the bytes of the other pools.
    """
    return RatioPool(
        size=max(0, size),
        rows=tuple(rows),
        window_percent=engine.whole("windows_percent", 100),
        states_percent=engine.whole("states_percent"),
        states_per_request=max(1, engine.whole("states_per_request", 1)),
    )
