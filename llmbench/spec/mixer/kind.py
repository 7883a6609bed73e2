"""The bases of all mixers: what a mixer says about itself, so that no other file has to ask which kind it is.

A new kind derives from `AttentionKind` or `RecurrentKind` and is `@final`. mypy then names each abstract property that
the kind does not define. A property with a constant value is a plain class attribute: `label = "MLA"`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from llmbench.spec.base import Fault, Kind, Part, Size, plural
from llmbench.spec.mixer.cache_row import CacheRow, FixedState
from llmbench.spec.position import PositionKind, Positions

if TYPE_CHECKING:
    from llmbench.spec.mixer.attention import Attention, QKNorm

SAVED_BYTES_DIFFER = "what recurrent and compressed mixers save for backward differs between implementations"
"""The `training_doubt` of a mixer whose saved bytes no trace confirms."""


class RotatedHeads(NamedTuple):
    """What a rotary embedding turns: `width` dimensions of each query head and of `key_heads` key heads. `field` is
    the spec's name of the width."""

    field: str
    width: int
    key_heads: int


class Indexer(Part, frozen=True):
    """DeepSeek-V3.2's lightning indexer: small heads that choose the `top_k` keys of each query.

    shared: the layer uses the choice of the indexer before it, and has no weights or keys of its own (GLM-5).
    interleaved: a pair of its rotation is two neighbours (GLM-5), not one dimension of each half.
    """

    num_heads: Size
    head_dim: Size
    top_k: Size
    shared: bool = False
    interleaved: bool = False


class MixerKind(Kind, frozen=True):
    """A mixer: the part of a layer that combines tokens.

    The abstract properties are what every mixer has to say. The others have a value that is right for most kinds.
    """

    @property
    @abstractmethod
    def label(self) -> str:
        """The kind in the field's words: `GQA`, `MLA`, `Mamba-2`."""

    @property
    @abstractmethod
    def module_name(self) -> str:
        """Name of its module in a layer, and of its ops: `attention`, `mamba`."""

    @property
    @abstractmethod
    def position_kinds(self) -> tuple[type[PositionKind], ...]:
        """The position encodings that the mixer itself applies. A spec with any other one that acts on queries, keys or
        scores is refused."""

    @property
    @abstractmethod
    def cache_rows(self) -> tuple[CacheRow, ...]:
        """What each token stores in the layer's cache; the indexer's keys are in `indexer_row`."""

    @property
    @abstractmethod
    def fixed_state(self) -> FixedState | None:
        """What a sequence stores in addition, whatever its length."""

    @property
    @abstractmethod
    def training_doubt(self) -> str | None:
        """Why the memory of training is approximate; None where a trace of the real module confirms every byte."""

    @property
    def summary(self) -> str:
        """Size and kind, as a headline shows them: `32 heads (MHA)`, `Mamba-2`."""
        return self.label

    @property
    def causal(self) -> bool:
        """Whether each token sees only the tokens up to itself."""
        return True

    @property
    def shares_kv(self) -> bool:
        """Whether the layer reads an earlier layer's cache instead of its own."""
        return False

    @property
    def absorbs(self) -> bool:
        """Whether decoding may compute on the cached latents without expanding them."""
        return False

    @property
    def span(self) -> int | None:
        """The most keys that one query can see; None: no bound."""
        return None

    @property
    def indexer(self) -> Indexer | None:
        """The indexer that chooses the keys of each query, if there is one."""
        return None

    @property
    def indexer_row(self) -> CacheRow | None:
        """What each token stores in the cache of the layer's own indexer."""
        return None

    @property
    def biases(self) -> tuple[str, ...]:
        """Names of the projections that have biases."""
        return ()


class AttentionKind(MixerKind, frozen=True):
    """A mixer with queries, keys and values: every query scores the keys that it can see."""

    module_name = "attention"
    fixed_state = None

    @property
    @abstractmethod
    def num_attention_heads(self) -> int:
        """Query heads."""

    @property
    @abstractmethod
    def num_key_value_heads(self) -> int:
        """Heads of the keys and values that the scores are computed with."""

    @property
    @abstractmethod
    def key_dim(self) -> int:
        """Width of one query head and one key head."""

    @property
    @abstractmethod
    def value_dim(self) -> int:
        """Width of one value head."""

    @property
    @abstractmethod
    def sliding_window(self) -> int | None:
        """Keys that a query can see, its own token included; None: no window."""

    @property
    @abstractmethod
    def positions(self) -> Positions | None:
        """The mixer's own position encoding; None: the model's."""

    @property
    @abstractmethod
    def rotated_heads(self) -> RotatedHeads | None:
        """What RoPE turns, where it is the position encoding; None where the mixer never uses RoPE."""

    @property
    @abstractmethod
    def cache_row(self) -> CacheRow:
        """What one token's keys and values take."""

    @property
    @abstractmethod
    def ordinary(self) -> Attention | None:
        """Ordinary attention with these heads and widths, to compare caches with; None where there is no such one."""

    @property
    def cache_rows(self) -> tuple[CacheRow, ...]:
        return (self.cache_row,) if self.causal and not self.shares_kv else ()

    @property
    def summary(self) -> str:
        return f"{plural(self.num_attention_heads, 'head')} ({self.label})"

    @property
    def attention_chunk_size(self) -> int | None:
        """Size of the chunks that attention stays in; None: no chunks."""
        return None

    @property
    def span(self) -> int | None:
        return self.sliding_window if self.sliding_window is not None else self.attention_chunk_size

    @property
    def qk_norm(self) -> QKNorm | None:
        """The norm on queries and keys, if there is one."""
        return None

    def faults(self) -> Iterator[Fault]:
        if self.positions is not None and self.positions.acts_on == "embedding":
            hint = "set the model's own positions instead"
            yield Fault("positions", f"`{self.positions.kind}` is added to the embedding, not used by a mixer", hint)


class RecurrentKind(MixerKind, frozen=True):
    """A mixer that passes a state of fixed size from token to token, and knows their order by it."""

    position_kinds = ()
    cache_rows = ()
    training_doubt = SAVED_BYTES_DIFFER

    @property
    @abstractmethod
    def fixed_state(self) -> FixedState:
        """What a sequence stores, whatever its length."""
