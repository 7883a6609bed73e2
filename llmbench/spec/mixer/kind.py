"""The base classes of all mixers, such as attention and Mamba. Other files read the properties that these classes
declare.

A new kind of mixer derives from `AttentionKind` or `RecurrentKind` and is marked `@final`. mypy then reports each
abstract property that the new class does not define. A class defines a constant property as a class attribute: `label =
"MLA"`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Self

from llmbench.spec.base import Fault, Kind, Part, Size, plural
from llmbench.spec.mixer.cache_row import CacheRow, FixedState
from llmbench.spec.position import PositionKind, Positions

if TYPE_CHECKING:
    from llmbench.spec.mixer.attention import Attention, QKNorm

SAVED_BYTES_DIFFER = "the saved bytes of recurrent and compressed mixers differ between implementations"
"""The `training_doubt` of a mixer if no trace of its PyTorch module has confirmed the saved bytes."""


class RotatedHeads(NamedTuple):
    """The widths of the query and key heads that RoPE rotates.

    - field: name of the spec field that gives `width`.
    - width: number of dimensions per head that RoPE can rotate.
    - key_heads: number of key heads that RoPE rotates. All query heads are rotated.
    """

    field: str
    width: int
    key_heads: int


class ScoreSettings(NamedTuple):
    """The settings of scores that an attention computes from queries and keys, without other parts of its layer.

    - scale: factor on the product of a query and a key.
    - soft_cap: soft limit of the scores, applied with tanh. None: there is no limit.
    - sinks: whether the softmax has one extra trained logit per head.
    """

    scale: float
    soft_cap: float | None = None
    sinks: bool = False


class Indexer(Part, frozen=True):
    """DeepSeek-V3.2's lightning indexer. It selects the `top_k` keys that each query attends to.

    - num_heads: number of indexer heads.
    - head_dim: width of an indexer head.
    - top_k: number of keys that the indexer selects per query.
    - shared: this layer reuses the keys that the indexer of an earlier layer selected. This layer has no indexer
      weights and caches no indexer keys (GLM-5).
    - interleaved: RoPE rotates pairs of neighbouring dimensions in the indexer's heads (GLM-5). If false, a rotated
      pair has one dimension from each half of the head.
    """

    num_heads: Size
    head_dim: Size
    top_k: Size
    shared: bool = False
    interleaved: bool = False


class MixerKind(Kind, frozen=True):
    """The base class of mixers. A mixer is the sublayer that combines the vectors of different tokens.

    A subclass must define the abstract properties. The other properties have a default value that is right for most
    mixers.
    """

    @property
    @abstractmethod
    def label(self) -> str:
        """The common name of this kind of mixer: `GQA`, `MLA`, `Mamba-2`."""

    @property
    @abstractmethod
    def module_name(self) -> str:
        """The name of the mixer's PyTorch module inside a layer: `attention`, `mamba`. The names of the mixer's ops
        contain it."""

    @property
    @abstractmethod
    def position_kinds(self) -> tuple[type[PositionKind], ...]:
        """The position encodings that this mixer can apply to queries, keys or scores.

        `check` refuses a spec in which this mixer would have to apply another encoding.
        """

    @property
    @abstractmethod
    def cache_rows(self) -> tuple[CacheRow, ...]:
        """The rows that the layer's cache stores for each token. They do not include the indexer's row (see
        `indexer_row`)."""

    @property
    @abstractmethod
    def fixed_state(self) -> FixedState | None:
        """The state of fixed size that this mixer stores for each sequence. None: the mixer has no such state."""

    @property
    @abstractmethod
    def training_doubt(self) -> str | None:
        """The reason why the predicted training memory is approximate. None: a trace of the PyTorch module confirms
        every byte."""

    @property
    def summary(self) -> str:
        """A short text about the mixer for the headline of a table: `32 heads (MHA)`, `Mamba-2`."""
        return self.label

    @property
    def causal(self) -> bool:
        """Whether a token sees only itself and earlier tokens."""
        return True

    @property
    def shares_kv(self) -> bool:
        """Whether the layer reads the KV cache of an earlier layer instead of a cache of its own."""
        return False

    @property
    def absorbs(self) -> bool:
        """Whether a decoding step can use the cached latents directly, without expanding them to keys and values.

        The key of the cache row then has two parts: the latent, and the rotated key that all heads share.
        """
        return False

    @property
    def span(self) -> int | None:
        """The largest number of keys that one query can see. None: the number is not limited."""
        return None

    @property
    def indexer(self) -> Indexer | None:
        """The indexer that selects the keys for each query. None: the mixer has no indexer."""
        return None

    @property
    def indexer_row(self) -> CacheRow | None:
        """The row that the indexer's cache stores for each token. None: the layer has no indexer of its own."""
        return None

    @property
    def biases(self) -> tuple[str, ...]:
        """The names of the projections that have biases, as tables show them: `q, k, v`, `attention output`."""
        return ()


def at_most(limit: int, size: int | None) -> int | None:
    """Return the smaller of `limit` and the size of a window or chunk. None stays None."""
    return None if size is None else min(limit, size)


class AttentionKind(MixerKind, frozen=True):
    """The base class of mixers with queries, keys and values. Each query has a score for every key that it can see."""

    module_name = "attention"
    fixed_state = None

    @property
    @abstractmethod
    def num_attention_heads(self) -> int:
        """The number of query heads."""

    @property
    @abstractmethod
    def num_key_value_heads(self) -> int:
        """The number of key heads when the scores are computed. The number of value heads is equal."""

    @property
    @abstractmethod
    def key_dim(self) -> int:
        """The width of a query head in elements. A key head has the same width."""

    @property
    @abstractmethod
    def value_dim(self) -> int:
        """The width of a value head in elements."""

    @property
    @abstractmethod
    def sliding_window(self) -> int | None:
        """The number of keys that a query can see, including the key of its own token. None: there is no window."""

    @property
    @abstractmethod
    def positions(self) -> Positions | None:
        """The position encoding of this mixer. None: the mixer uses the position encoding of the model."""

    @property
    @abstractmethod
    def rotated_heads(self) -> RotatedHeads | None:
        """The heads that RoPE rotates, if the mixer uses RoPE. None: the mixer never uses RoPE."""

    @property
    @abstractmethod
    def cache_row(self) -> CacheRow:
        """The cache row that stores the keys and values of one token."""

    @abstractmethod
    def score_settings(self, positions: Positions) -> ScoreSettings | None:
        """Return the settings of the scores for this position encoding.

        None: the scores need other parts of the layer, such as an indexer. `profile` cannot time such an attention
        without its layer.
        """

    @abstractmethod
    def narrowed(self, *, kv_heads: int, span: int) -> Self:
        """Return this attention with at most `kv_heads` key heads, and with windows and chunks of at most `span`
        tokens. The number of query heads per key head stays the same.

        `profile` checks an implementation with such an attention.
        """

    @property
    @abstractmethod
    def ordinary(self) -> Attention | None:
        """Ordinary attention with the same heads and widths. The `kvcache` command compares cache sizes with it.

        None: there is no equivalent ordinary attention.
        """

    @property
    def cache_rows(self) -> tuple[CacheRow, ...]:
        return (self.cache_row,) if self.causal and not self.shares_kv else ()

    @property
    def summary(self) -> str:
        return f"{plural(self.num_attention_heads, 'head')} ({self.label})"

    @property
    def attention_chunk_size(self) -> int | None:
        """The length of a chunk in tokens. A query sees only keys in its own chunk. None: there are no chunks."""
        return None

    @property
    def span(self) -> int | None:
        return self.sliding_window if self.sliding_window is not None else self.attention_chunk_size

    @property
    def score_changes(self) -> tuple[str, ...]:
        """The changes of the scores that only some implementations compute, such as a soft cap."""
        return ()

    @property
    def qk_norm(self) -> QKNorm | None:
        """The norm on queries and keys. None: queries and keys have no norm."""
        return None

    def faults(self) -> Iterator[Fault]:
        if self.positions is not None and self.positions.acts_on == "embedding":
            what = f"`{self.positions.kind}` is added to the embedding, so a mixer cannot use it"
            yield Fault("positions", what, "set the positions of the model instead")


class RecurrentKind(MixerKind, frozen=True):
    """The base class of mixers that pass a state of fixed size from token to token. They need no position encoding."""

    position_kinds = ()
    cache_rows = ()
    training_doubt = SAVED_BYTES_DIFFER

    @property
    @abstractmethod
    def fixed_state(self) -> FixedState:
        """The state of fixed size that this mixer stores for each sequence."""
