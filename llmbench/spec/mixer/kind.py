"""The base classes of all mixers. Other files read the properties of a mixer instead of asking which kind it is.

A new kind derives from `AttentionKind` or `RecurrentKind` and is `@final`. mypy then reports each abstract property
that the kind does not define. A kind defines a constant property as a class attribute: `label = "MLA"`.
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

SAVED_BYTES_DIFFER = "implementations of recurrent and compressed mixers save different tensors for the backward pass"
"""The `training_doubt` of mixers whose saved bytes are not confirmed by a trace of the PyTorch module."""


class RotatedHeads(NamedTuple):
    """The heads that RoPE rotates: `width` dimensions of each query head, and of each of the `key_heads` key heads.

    `field` is the spec field that gives the width.
    """

    field: str
    width: int
    key_heads: int


class Indexer(Part, frozen=True):
    """DeepSeek-V3.2's lightning indexer: small heads that select the `top_k` keys that attention reads per query.

    - shared: the layer reuses the keys that the indexer of an earlier layer selected. It has no indexer weights and
      caches no indexer keys (GLM-5).
    - interleaved: RoPE rotates pairs of neighbouring dimensions of the indexer (GLM-5). Otherwise a pair consists of
      one dimension from each half.
    """

    num_heads: Size
    head_dim: Size
    top_k: Size
    shared: bool = False
    interleaved: bool = False


class MixerKind(Kind, frozen=True):
    """A mixer: the part of a layer that combines tokens.

    A kind must define the abstract properties. The other properties have a default that is right for most kinds.
    """

    @property
    @abstractmethod
    def label(self) -> str:
        """Common name of the kind: `GQA`, `MLA`, `Mamba-2`."""

    @property
    @abstractmethod
    def module_name(self) -> str:
        """Name of the mixer's module in a layer, and of its ops: `attention`, `mamba`."""

    @property
    @abstractmethod
    def position_kinds(self) -> tuple[type[PositionKind], ...]:
        """The position encodings that the mixer can apply to queries, keys or scores.

        `check` refuses a spec in which another encoding acts on queries, keys or scores of this mixer.
        """

    @property
    @abstractmethod
    def cache_rows(self) -> tuple[CacheRow, ...]:
        """The rows that each token stores in the cache of the layer, without the keys of an indexer (`indexer_row`)."""

    @property
    @abstractmethod
    def fixed_state(self) -> FixedState | None:
        """The state of fixed size that each sequence stores. None: the mixer has no such state."""

    @property
    @abstractmethod
    def training_doubt(self) -> str | None:
        """Reason why the training memory is approximate. None: a trace of the PyTorch module confirms every byte."""

    @property
    def summary(self) -> str:
        """Text for the headline of a table: `32 heads (MHA)`, `Mamba-2`."""
        return self.label

    @property
    def causal(self) -> bool:
        """Whether each token sees only itself and earlier tokens."""
        return True

    @property
    def shares_kv(self) -> bool:
        """Whether the layer reads the cache of an earlier layer and has no cache of its own."""
        return False

    @property
    def absorbs(self) -> bool:
        """Whether decoding can compute with the cached latents without expanding them to keys and values."""
        return False

    @property
    def span(self) -> int | None:
        """The most keys that one query can see. None: no bound."""
        return None

    @property
    def indexer(self) -> Indexer | None:
        """The indexer that selects the keys of each query. None: the mixer has no indexer."""
        return None

    @property
    def indexer_row(self) -> CacheRow | None:
        """The row that each token stores in the cache of the indexer. None: the layer has no indexer of its own."""
        return None

    @property
    def biases(self) -> tuple[str, ...]:
        """The projections that have biases, as a table shows them."""
        return ()


class AttentionKind(MixerKind, frozen=True):
    """A mixer with queries, keys and values. Each query computes a score for every key that it can see."""

    module_name = "attention"
    fixed_state = None

    @property
    @abstractmethod
    def num_attention_heads(self) -> int:
        """Number of query heads."""

    @property
    @abstractmethod
    def num_key_value_heads(self) -> int:
        """Number of key heads, and of value heads, in the computation of the scores."""

    @property
    @abstractmethod
    def key_dim(self) -> int:
        """Width of a query head, which is also the width of a key head."""

    @property
    @abstractmethod
    def value_dim(self) -> int:
        """Width of a value head."""

    @property
    @abstractmethod
    def sliding_window(self) -> int | None:
        """Number of keys that a query can see, including the key of its own token. None: no window."""

    @property
    @abstractmethod
    def positions(self) -> Positions | None:
        """The position encoding of this mixer. None: it uses the encoding of the model."""

    @property
    @abstractmethod
    def rotated_heads(self) -> RotatedHeads | None:
        """The heads that RoPE rotates if the mixer uses RoPE. None: the mixer never uses RoPE."""

    @property
    @abstractmethod
    def cache_row(self) -> CacheRow:
        """The row that one token's keys and values take in a cache."""

    @property
    @abstractmethod
    def ordinary(self) -> Attention | None:
        """Ordinary attention with the same heads and widths, for the comparison of caches. None: there is no
        equivalent."""

    @property
    def cache_rows(self) -> tuple[CacheRow, ...]:
        return (self.cache_row,) if self.causal and not self.shares_kv else ()

    @property
    def summary(self) -> str:
        return f"{plural(self.num_attention_heads, 'head')} ({self.label})"

    @property
    def attention_chunk_size(self) -> int | None:
        """Length of the chunks that a query cannot see beyond. None: no chunks."""
        return None

    @property
    def span(self) -> int | None:
        return self.sliding_window if self.sliding_window is not None else self.attention_chunk_size

    @property
    def qk_norm(self) -> QKNorm | None:
        """The norm on queries and keys. None: there is no such norm."""
        return None

    def faults(self) -> Iterator[Fault]:
        if self.positions is not None and self.positions.acts_on == "embedding":
            hint = "set the positions of the model instead"
            yield Fault("positions", f"`{self.positions.kind}` is added to the embedding, not used by a mixer", hint)


class RecurrentKind(MixerKind, frozen=True):
    """A mixer that passes a state of fixed size from token to token. It needs no position encoding."""

    position_kinds = ()
    cache_rows = ()
    training_doubt = SAVED_BYTES_DIFFER

    @property
    @abstractmethod
    def fixed_state(self) -> FixedState:
        """The state of fixed size that each sequence stores."""
